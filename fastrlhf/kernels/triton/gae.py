"""Generalised advantage estimation: one program a row, a block of positions at a time from the row's end.

A_t = delta_t + c A_{t+1} is a chain of affine maps of the advantage after the block. A scan composes the maps; the
advantage carried over then goes through each composed map.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton

CONFIGS = [
    {"BLOCK": 32, "num_warps": 1},
    {"BLOCK": 256, "num_warps": 2},
    {"BLOCK": 1024, "num_warps": 4},
]


def choose_config(columns: int) -> dict:
    """The smallest block that holds a whole row, or the largest."""
    return next((config for config in CONFIGS if config["BLOCK"] >= columns), CONFIGS[-1])


def gae(rewards, values, mask, moments_mask, gamma, lam):
    """See `fastrlhf.kernels.gae`. The moments are those of the advantages before they are rounded; no atomics, so
    the same input gives the same bits."""
    inputs = [tensor.contiguous() for tensor in (rewards, values, mask, moments_mask)]
    rows, columns = rewards.shape
    advantages, returns = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    row_moments = torch.empty(rows, 3, dtype=torch.float64, device=rewards.device)
    launch_triton(
        gae_kernel,
        (rows,),
        rewards.device,
        *inputs,
        advantages,
        returns,
        row_moments,
        columns,
        gamma,
        gamma * lam,
        **choose_config(columns),
    )
    return advantages, returns, row_moments.sum(dim=0)


@triton.jit
def compose(after_add, after_scale, add, scale):
    """x -> add + scale (after_add + after_scale x): the map of an earlier position on that of those after it.

    A negative scale is that of a masked position's map, which forgets x altogether, even where x is NaN.
    """
    forgets = scale < 0
    composed_add = tl.where(forgets, add, add + scale * after_add)
    composed_scale = tl.where(forgets | (after_scale < 0), -1.0, scale * after_scale)
    return composed_add, composed_scale


@triton.jit(do_not_specialize=["columns"])
def gae_kernel(
    rewards,
    values,
    mask,
    moments_mask,
    advantages,
    returns,
    row_moments,
    columns,
    gamma,
    gamma_lam,
    BLOCK: tl.constexpr,
):
    """Grid: one program a row. All of `[rows, columns]` and contiguous; row_moments: float64 `[rows, 3]`."""
    start = tl.program_id(0).to(tl.int64) * columns
    lane = tl.arange(0, BLOCK)
    count = tl.zeros((BLOCK,), tl.float64)
    total = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    next_advantage = 0.0  # of the position after the block
    blocks = tl.cdiv(columns, BLOCK)
    for done in range(blocks):
        column = (blocks - 1 - done) * BLOCK + lane
        inside, after_inside = column < columns, column + 1 < columns
        at = start + column
        keep = tl.load(mask + at, mask=inside, other=0) != 0
        keep_after = tl.load(mask + at + 1, mask=after_inside, other=0) != 0
        # nothing masked is read, so that no NaN is
        reward = tl.load(rewards + at, mask=keep, other=0.0).to(tl.float32)
        value = tl.load(values + at, mask=keep, other=0.0).to(tl.float32)
        value_after = tl.load(values + at + 1, mask=keep_after, other=0.0).to(tl.float32)

        delta = tl.where(keep, reward + gamma * value_after - value, 0.0)
        add, scale = tl.associative_scan(
            (delta, tl.where(keep, gamma_lam, -1.0)), axis=0, combine_fn=compose, reverse=True
        )
        advantage = tl.where(scale < 0, add, add + scale * next_advantage)
        next_advantage = tl.sum(tl.where(lane == 0, advantage, 0.0), axis=0)

        tl.store(advantages + at, advantage.to(advantages.dtype.element_ty), mask=inside)
        returned = tl.where(keep, advantage + value, 0.0)
        tl.store(returns + at, returned.to(returns.dtype.element_ty), mask=inside)
        counts = keep & (tl.load(moments_mask + at, mask=inside, other=0) != 0)
        counted = tl.where(counts, advantage, 0.0).to(tl.float64)
        count += counts.to(tl.float64)
        total += counted
        squares += counted * counted

    moments = row_moments + tl.program_id(0).to(tl.int64) * 3
    tl.store(moments, tl.sum(count, axis=0))
    tl.store(moments + 1, tl.sum(total, axis=0))
    tl.store(moments + 2, tl.sum(squares, axis=0))
