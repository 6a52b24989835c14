"""The low-rank parts of `lora_linear`: down to the rank by group, and the sums over a group's rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton

# float32 dots are exact ("ieee"), which a tensor core is not: they are thin, and the smaller tile keeps them in registers.
CONFIGS = {
    "down": {"BLOCK_M": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2},
    "sums": {"BLOCK_M": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 2},
}
# A split of the rows for each so many, so that a few adapters keep a whole card busy.
ROWS_PER_SPLIT, MOST_SPLITS = 1024, 16


def rank_block(rank):
    """The tile's size along the rank: what `tl.dot` takes at least, and at most 64."""
    return min(64, max(16, triton.next_power_of_2(rank)))


@triton.jit(do_not_specialize=["rows", "groups"])
def down_kernel(
    x,
    adapter,
    group_offsets,
    scaling,
    hidden,
    rows,
    groups,
    width,
    rank,
    stride_rank,
    stride_width,
    BLOCK_M: tl.constexpr,
    BLOCK_K: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """hidden `[rows, rank]` = `scaling_g x a_g^T` of each row's group, zero in rows without one."""
    first = tl.program_id(0).to(tl.int64) * BLOCK_M
    row = first + tl.arange(0, BLOCK_M)
    r = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    total = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
    for g in range(groups):
        start, end = tl.load(group_offsets + g), tl.load(group_offsets + g + 1)
        if (start < first + BLOCK_M) & (end > first) & (start < end):
            member = (row >= start) & (row < end) & (row < rows)
            own = adapter + tl.cast(g, tl.int64) * rank * width
            sums = tl.zeros((BLOCK_M, BLOCK_R), dtype=tl.float32)
            for k in range(0, width, BLOCK_K):
                column = k + tl.arange(0, BLOCK_K)
                part = tl.load(
                    x + row[:, None] * width + column[None, :],
                    mask=member[:, None] & (column < width)[None, :],
                    other=0.0,
                )
                a = tl.load(
                    own + column[:, None] * stride_width + r[None, :] * stride_rank,
                    mask=(column < width)[:, None] & (r < rank)[None, :],
                    other=0.0,
                )
                sums = tl.dot(part.to(a.dtype), a, sums, input_precision="ieee")
            total = tl.where(member[:, None], sums * tl.load(scaling + g), total)
    tl.store(
        hidden + row[:, None] * rank + r[None, :], total, mask=(row < rows)[:, None] & (r < rank)[None, :]
    )


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
    g, split = tl.program_id(0).to(tl.int64) // splits, tl.program_id(0) % splits
    column = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    r = tl.program_id(2) * BLOCK_R + tl.arange(0, BLOCK_R)
    start = tl.maximum(tl.load(group_offsets + g), 0)
    end = tl.minimum(tl.load(group_offsets + g + 1), rows)
    share = tl.cdiv(tl.cdiv(tl.maximum(end - start, 0), splits), BLOCK_M) * BLOCK_M
    first = start + split * share
    last = tl.minimum(first + share, end)
    total = tl.zeros((BLOCK_R, BLOCK_K), dtype=tl.float32)
    for at in range(first, last, BLOCK_M):
        row = (at + tl.arange(0, BLOCK_M)).to(tl.int64)
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


def down(x, adapter, group_offsets, scaling, *, transposed):
    """`scaling_g x a_g^T` of each row's group, `[N, r]`; a is `[G, r, width]`, or with `transposed` `[G, width, r]`."""
    rank, width = (adapter.shape[2], adapter.shape[1]) if transposed else adapter.shape[1:]
    hidden = adapter.new_empty(x.shape[0], rank)
    config, block = CONFIGS["down"], rank_block(rank)
    launch_triton(
        down_kernel,
        (triton.cdiv(x.shape[0], config["BLOCK_M"]), triton.cdiv(rank, block)),
        x.device,
        x,
        adapter,
        group_offsets,
        scaling,
        hidden,
        x.shape[0],
        adapter.shape[0],
        width,
        rank,
        1 if transposed else width,
        rank if transposed else 1,
        BLOCK_R=block,
        **config,
    )
    return hidden


def sums_over_rows(narrow, wide, group_offsets, like, *, transposed):
    """`narrow^T wide` over the rows of each group, in the shape and dtype of `like`: `[G, r, width]`, or with
    `transposed` `[G, width, r]`. Splits of the rows are added up in order: the same bits every time.
    """
    rows, rank, width = narrow.shape[0], narrow.shape[1], wide.shape[1]
    splits = min(MOST_SPLITS, max(1, rows // ROWS_PER_SPLIT))
    sums = torch.empty(splits, *like.shape, dtype=torch.float32, device=like.device)
    config, block = CONFIGS["sums"], rank_block(rank)
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
