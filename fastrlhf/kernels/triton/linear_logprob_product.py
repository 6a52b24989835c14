"""Products of the gradients of the logits: with the head's weight, and turned with the hidden states."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.triton.linear_logprob_tile import size_class

CONFIGS = [
    {"BLOCK_M": 16, "BLOCK_D": 128, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
    {"BLOCK_M": 128, "BLOCK_D": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
    {"BLOCK_M": 64, "BLOCK_D": 64, "BLOCK_K": 32, "num_warps": 8, "num_stages": 2},
]
# The least number of programs that a sum is split for.
PROGRAMS = 256


def choose_config(outer: int, dtype: torch.dtype) -> dict:
    """The flat tile for few rows; smaller ones in float32."""
    return CONFIGS[size_class(outer, dtype)]


def product(held, other, *, into=None, turned=False):
    """`held[:, :k] @ other` for gradients `[N, part]` and a weight `[k, D]`, added to `into` `[splits, N, D]`, float32
    (made if None); or `turned`, `held[:, :m].T @ other` for hidden states `[N, D]`, written to `into` `[m, D]`."""
    rows, part = held.shape
    width = other.shape[1]
    outer, depth = (into.shape[0], rows) if turned else (rows, other.shape[0])
    config = choose_config(outer, held.dtype)
    tiles = triton.cdiv(outer, config["BLOCK_M"]) * triton.cdiv(width, config["BLOCK_D"])
    add = into is not None and not turned
    if turned:
        splits = 1
    elif into is None:
        splits = max(1, min(PROGRAMS // max(tiles, 1), triton.cdiv(depth, 8 * config["BLOCK_K"])))
        into = held.new_empty((splits, rows, width), dtype=torch.float32)
    else:
        splits = into.shape[0]
    blocks = triton.cdiv(triton.cdiv(depth, config["BLOCK_K"]), splits)
    launch_triton(
        linear_logprob_product_kernel,
        (tiles, splits),
        held.device,
        *(held, other, into, rows, part, outer, depth, blocks),
        WIDTH=width,
        TURNED=turned,
        ADD=add,
        **config,
    )
    return into


@triton.jit(do_not_specialize=["rows", "outer", "depth", "blocks"])
def linear_logprob_product_kernel(
    held,
    other,
    into,
    rows,
    part,
    outer,
    depth,
    blocks,
    WIDTH: tl.constexpr,
    TURNED: tl.constexpr,
    ADD: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: (tiles of the result, splits of the depth of `blocks` blocks each).

    Of `held` no column is masked: it is zero from the last word to the end of its block.
    """
    tile, split = tl.program_id(0), tl.program_id(1).to(tl.int64)
    tiles_m = tl.cdiv(outer, BLOCK_M)
    # programs that run together have the same columns of `other`
    m = (tile % tiles_m).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    d = (tile // tiles_m) * BLOCK_D + tl.arange(0, BLOCK_D)
    sums = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    begin = split * blocks * BLOCK_K
    for first in range(begin, tl.minimum(begin + blocks * BLOCK_K, depth), BLOCK_K):
        k = first + tl.arange(0, BLOCK_K)
        if TURNED:
            left = tl.load(held + k[None, :] * part + m[:, None], mask=(k < depth)[None, :], other=0.0)
        else:
            left = tl.load(held + m[:, None] * part + k[None, :], mask=(m < rows)[:, None], other=0.0)
        right = tl.load(
            other + k[:, None] * WIDTH + d[None, :],
            mask=(k < depth)[:, None] & (d < WIDTH)[None, :],
            other=0.0,
        )
        sums = tl.dot(left, right, sums, input_precision="ieee")
    at = into + (split * outer + m)[:, None] * WIDTH + d[None, :]
    inside = (m < outer)[:, None] & (d < WIDTH)[None, :]
    if ADD:
        sums += tl.load(at, mask=inside, other=0.0)
    tl.store(at, sums.to(into.dtype.element_ty), mask=inside)
