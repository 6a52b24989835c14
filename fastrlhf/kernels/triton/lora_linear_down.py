"""Down to the rank: each row times the adapter of its group, the first of the two low-rank products."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton

# The product is thin, and in float32 exact ("ieee", no tensor cores): what counts is reading x once.
CONFIGS = [
    {"BLOCK_M": 16, "BLOCK_K": 128, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 32, "BLOCK_K": 64, "num_warps": 4, "num_stages": 3},
]


def choose_config(rows: int) -> dict:
    """The taller tile where there are rows for it."""
    return CONFIGS[1 if rows > 1024 else 0]


def rank_block(rank: int) -> int:
    """The tile's size along the rank: what `tl.dot` takes at least, and at most 64."""
    return min(64, max(16, triton.next_power_of_2(rank)))


def down(x, adapter, group_offsets, scaling, *, transposed):
    """`scaling_g x a_g^T` of each row's group, `[N, r]`; a is `[G, r, width]`, or with `transposed` `[G, width, r]`."""
    rank, width = (adapter.shape[2], adapter.shape[1]) if transposed else adapter.shape[1:]
    hidden = adapter.new_empty(x.shape[0], rank)
    config, block = choose_config(x.shape[0]), rank_block(rank)
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
    r = tl.program_id(1).to(tl.int64) * BLOCK_R + tl.arange(0, BLOCK_R)
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
