"""Sums over the rows of each group: the gradients of the adapters."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.triton.lora_linear_down import rank_block

CONFIGS = [
    {"BLOCK_M": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
    {"BLOCK_M": 64, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
]
# A split of the rows for each so many, so that a few adapters keep a whole card busy.
ROWS_PER_SPLIT, MOST_SPLITS = 1024, 16


def choose_config(dtype: torch.dtype) -> dict:
    """The taller tile where a number takes two bytes."""
    return CONFIGS[0 if dtype == torch.float32 else 1]


def sums_over_rows(narrow, wide, group_offsets, like, *, transposed):
    """`narrow^T wide` over the rows of each group, in the shape and dtype of `like`: `[G, r, width]`, or with
    `transposed` `[G, width, r]`. Splits of the rows are added up in order: the same bits every time.
    """
    rows, rank, width = narrow.shape[0], narrow.shape[1], wide.shape[1]
    splits = min(MOST_SPLITS, max(1, rows // ROWS_PER_SPLIT))
    sums = torch.empty(splits, *like.shape, dtype=torch.float32, device=like.device)
    config, block = choose_config(like.dtype), rank_block(rank)
    launch_triton(
        sums_kernel,
        (like.shape[0] * splits, triton.cdiv(width, config["BLOCK_K"]), triton.cdiv(rank, block)),
        narrow.device,
        narrow,
        wide,
        group_offsets,
        sums,
        rows,
        like.shape[0],
        splits,
        width,
        rank,
        1 if transposed else width,
        rank if transposed else 1,
        BLOCK_R=block,
        **config,
    )
    return (sums[0] if splits == 1 else sums.sum(dim=0)).to(like.dtype)


@triton.jit(do_not_specialize=["rows", "groups", "splits"])
def sums_kernel(
    narrow,
    wide,
    group_offsets,
    sums,
    rows,
    groups,
    splits,
    width,
    rank,
    stride_rank,
    stride_width,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """sums `[splits, groups, rank by width]` = `narrow^T wide` over a split's part of the rows of a group."""
    part = tl.program_id(0).to(tl.int64)
    g, split = part // splits, part % splits
    column = tl.program_id(1).to(tl.int64) * BLOCK_K + tl.arange(0, BLOCK_K)
    r = tl.program_id(2).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
    start = tl.maximum(tl.load(group_offsets + g), 0)
    end = tl.minimum(tl.load(group_offsets + g + 1), rows)
    share = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), splits), BLOCK_M) * BLOCK_M
    first = start + split * share
    last = tl.minimum(first + share, end)
    total = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.float32)
    for at in range(first, last, BLOCK_M):
        row = at + tl.arange(0, BLOCK_M)
        n = tl.load(
            narrow + row[None, :] * rank + r[:, None],
            mask=(row < last)[None, :] & (r < rank)[:, None],
            other=0.0,
        )
        w = tl.load(
            wide + row[:, None] * width + column[None, :],
            mask=(row < last)[:, None] & (column < width)[None, :],
            other=0.0,
        )
        total = tl.dot(n, w.to(n.dtype), total, input_precision="ieee")
    to = sums + (split * groups + g) * rank * width
    tl.store(
        to + r[:, None] * stride_rank + column[None, :] * stride_width,
        total,
        mask=(r < rank)[:, None] & (column < width)[None, :],
    )
