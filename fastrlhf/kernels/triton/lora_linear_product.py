"""`x W^T` or `x W` with a low-rank part and a bias, the base weight dequantised in registers."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.triton.base_weight import base_arguments, load_base
from fastrlhf.kernels.triton.lora_linear_down import rank_block

# Tiles whose stages fit the 99 KB of shared memory of the consumer cards. Along `in` a tile is 64 at least: a block
# of NF4. Decoding has few rows, and then it is the weight's bytes in flight that count.
CONFIGS = [
    {"BLOCK_M": 16, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
    {"BLOCK_M": 32, "BLOCK_N": 64, "BLOCK_K": 64, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 128, "BLOCK_N": 128, "BLOCK_K": 64, "num_warps": 8, "num_stages": 3},
]
FEW_ROWS = 16
# Programs that run together share rows of the weight: so many tiles of x before the next tile of the weight.
SWIZZLE = 8


def choose_config(rows: int, dtype: torch.dtype) -> dict:
    """The flat tile for few rows, the large one for many in two bytes a number.

    The low one is float32's, whose products are not a tensor core's: 64 rows spilled kilobytes. Columns and depth are
    multiples of 64, nf4's block.
    """
    if dtype == torch.float32:
        return CONFIGS[1]
    return CONFIGS[0 if rows <= FEW_ROWS else 2]


class LowRank(NamedTuple):
    """A low-rank part: hidden `[N, r]` times the adapters, `[G, width, r]`, or if `transposed` `[G, r, width]`."""

    hidden: torch.Tensor
    adapter: torch.Tensor
    group_offsets: torch.Tensor
    transposed: bool


def layer_product(x, base, width, *, transposed=False, bias=None, low_rank=None):
    """`x W^T` `[N, out]`, or with `transposed` `x W` `[N, in]`, for the parts `base` of a weight `[out, width]`."""
    rows, out = x.shape[0], base[0].shape[0]
    columns = width if transposed else out
    x, y = x.contiguous(), x.new_empty(rows, columns)
    pointers, kind = base_arguments(*base)
    config = choose_config(rows, x.dtype)
    tiles = triton.cdiv(rows, config["BLOCK_M"]) * triton.cdiv(columns, config["BLOCK_N"])
    hidden, adapter, group_offsets, rank_first = low_rank or (x, x, x, False)
    rank, groups = (hidden.shape[1], adapter.shape[0]) if low_rank else (1, 0)
    launch_triton(
        layer_product_kernel,
        (tiles,),
        x.device,
        x,
        *pointers,
        x if bias is None else bias.contiguous(),
        hidden,
        adapter,
        group_offsets,
        y,
        rows,
        out,
        width,
        groups,
        rank,
        columns if rank_first else 1,
        1 if rank_first else rank,
        KIND=kind,
        TRANSPOSED=transposed,
        HAS_BIAS=bias is not None,
        HAS_LOW_RANK=low_rank is not None,
        BLOCK_R=rank_block(rank),
        SWIZZLE=SWIZZLE,
        **config,
    )
    return y


@triton.jit(do_not_specialize=["rows", "groups"])
def layer_product_kernel(
    x,
    weight,
    scales,
    scale_scales,
    offset,
    nf4,
    dynamic,
    bias,
    hidden,
    adapter,
    group_offsets,
    y,
    rows,
    out,
    width,
    groups,
    rank,
    stride_rank,
    stride_column,
    KIND: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_LOW_RANK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
    SWIZZLE: tl.constexpr,
):
    """y = x W^T `[rows, out]`, or with TRANSPOSED x W `[rows, width]`, plus hidden times its row's adapter."""
    columns, depth = (width, out) if TRANSPOSED else (out, width)
    tiles_m, tiles_n = tl.cdiv(rows, BLOCK_M), tl.cdiv(columns, BLOCK_N)
    tile = tl.program_id(0)
    band = tile // (SWIZZLE * tiles_n) * SWIZZLE
    height = tl.minimum(tiles_m - band, SWIZZLE)
    inner = tile % (SWIZZLE * tiles_n)
    first = (band + inner % height).to(tl.int64) * BLOCK_M
    first_column = (inner // height) * BLOCK_N
    row = first + tl.arange(0, BLOCK_M)
    column = first_column + tl.arange(0, BLOCK_N)

    sums = tl.zeros((BLOCK_M, BLOCK_N), dtype=tl.float32)
    for k in range(0, depth, BLOCK_K):
        at = k + tl.arange(0, BLOCK_K)
        part = tl.load(
            x + row[:, None] * depth + at[None, :],
            mask=(row < rows)[:, None] & (at < depth)[None, :],
            other=0.0,
        )
        if TRANSPOSED:
            w = load_base(
                weight,
                scales,
                scale_scales,
                offset,
                nf4,
                dynamic,
                k,
                first_column,
                out,
                width,
                KIND,
                BLOCK_K,
                BLOCK_N,
                x.dtype.element_ty,
            )
        else:
            w = tl.trans(
                load_base(
                    weight,
                    scales,
                    scale_scales,
                    offset,
                    nf4,
                    dynamic,
                    first_column,
                    k,
                    out,
                    width,
                    KIND,
                    BLOCK_N,
                    BLOCK_K,
                    x.dtype.element_ty,
                )
            )
        sums = tl.dot(part, w, sums, input_precision="ieee")

    if HAS_LOW_RANK:
        bad = rows < tl.load(group_offsets + groups)
        before = 0
        for g in range(groups):
            start, end = tl.load(group_offsets + g), tl.load(group_offsets + g + 1)
            bad = bad | (start < before) | (end < start)
            before = start
            if (start < first + BLOCK_M) & (end > first):
                member = (row >= start) & (row < end) & (row < rows)
                own = adapter + tl.cast(g, tl.int64) * rank * columns
                for r0 in range(0, rank, BLOCK_R):
                    r = r0 + tl.arange(0, BLOCK_R)
                    h = tl.load(
                        hidden + row[:, None] * rank + r[None, :],
                        mask=member[:, None] & (r < rank)[None, :],
                        other=0.0,
                    )
                    a = tl.load(
                        own + r[:, None] * stride_rank + column[None, :] * stride_column,
                        mask=(r < rank)[:, None] & (column < columns)[None, :],
                        other=0.0,
                    )
                    sums = tl.dot(h, a, sums, input_precision="ieee")
        sums = tl.where(bad, float("nan"), sums)
    if HAS_BIAS:
        sums += tl.load(bias + column, mask=column < columns, other=0.0).to(tl.float32)[None, :]
    tl.store(
        y + row[:, None] * columns + column[None, :],
        sums.to(y.dtype.element_ty),
        mask=(row < rows)[:, None] & (column < columns)[None, :],
    )
