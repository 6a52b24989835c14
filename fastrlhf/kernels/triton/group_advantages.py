"""Group-relative and leave-one-out advantages: one program a group, which reads its scores three times.

Everything in float64, of which there is next to nothing: a few numbers a response.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.group_advantages import GROUP_ESTIMATORS
from fastrlhf.kernels.group_rows import group_rows

CONFIGS = [
    {"BLOCK": 32, "num_warps": 1},
    {"BLOCK": 256, "num_warps": 2},
]


def choose_config(group_size: int) -> dict:
    """The smallest block that holds a whole group, or the largest."""
    return next((config for config in CONFIGS if config["BLOCK"] >= group_size), CONFIGS[-1])


def group_advantages(scores, mask, groups, group_size, estimator, epsilon):
    """See `fastrlhf.kernels.group_advantages`. The moments are those of the advantages before they are rounded; no
    atomics, so the same input gives the same bits."""
    rows, (order, starts) = scores.shape[0], (None, None) if groups is None else group_rows(groups)
    count = rows // group_size if groups is None else rows
    inputs = [None if tensor is None else tensor.contiguous() for tensor in (scores, mask, order, starts)]
    # NaN stays where a row's group does not exist.
    advantages = torch.empty_like(inputs[0]) if groups is None else torch.full_like(inputs[0], torch.nan)
    group_moments = torch.empty(count, 3, dtype=torch.float64, device=scores.device)
    launch_triton(
        group_advantages_kernel,
        (count,),
        scores.device,
        *inputs,
        advantages,
        group_moments,
        group_size,
        epsilon,
        ESTIMATOR=GROUP_ESTIMATORS.index(estimator) + 1,
        **choose_config(group_size),
    )
    return advantages, group_moments.sum(dim=0)


@triton.jit
def members(scores, mask, order, at, end):
    """Rows of the positions `at` of a group that ends before `end`, whether they count, and their scores (else 0)."""
    inside = at < end
    row = at
    if order is not None:
        row = tl.load(order + at, mask=inside, other=0)
    kept = inside
    if mask is not None:
        kept = inside & (tl.load(mask + row, mask=inside, other=0) != 0)
    # nothing masked is read, so that no NaN is
    return row, kept, tl.load(scores + row, mask=kept, other=0.0).to(tl.float64)


@triton.jit(do_not_specialize=["group_size"])
def group_advantages_kernel(
    scores,
    mask,
    order,
    starts,
    advantages,
    group_moments,
    group_size,
    epsilon,
    ESTIMATOR: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: one program a group: `order[starts[g] : starts[g + 1]]`, or group_size rows in order where these are None.
    mask may be None. group_moments: float64 `[groups, 3]`. ESTIMATOR: the place in GROUP_ESTIMATORS, from 1."""
    group = tl.program_id(0).to(tl.int64)
    if starts is not None:
        begin, end = tl.load(starts + group), tl.load(starts + group + 1)
    else:
        begin = group * group_size
        end = begin + group_size
    lane = tl.arange(0, BLOCK)
    blocks = tl.cdiv(end - begin, BLOCK)

    counts = tl.zeros((BLOCK,), tl.float64)
    totals = tl.zeros((BLOCK,), tl.float64)
    for block in range(blocks):
        _, kept, score = members(scores, mask, order, begin + block * BLOCK + lane, end)
        counts += kept.to(tl.float64)
        totals += score
    count = tl.sum(counts, axis=0)
    some = tl.maximum(count, 1.0)  # a group may have no row
    mean = tl.sum(totals, axis=0) / some

    rests = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    for block in range(blocks):
        _, kept, score = members(scores, mask, order, begin + block * BLOCK + lane, end)
        deviation = tl.where(kept, score - mean, 0.0)
        rests += deviation
        squares += deviation * deviation
    rest = tl.sum(rests, axis=0) / some  # what rounding left of the mean; NaN where a score is not finite

    divisor = 1.0
    if ESTIMATOR == 1:
        variance = (tl.sum(squares, axis=0) - rest * rest * count) / tl.maximum(count - 1, 1.0)
        divisor = tl.sqrt(tl.maximum(variance, 0.0)) + epsilon
        divisor = tl.where(divisor == 0, 1.0, divisor)  # an epsilon too small for float32, in which it comes
    elif ESTIMATOR == 3:
        divisor = (count - 1) / some

    total = tl.zeros((BLOCK,), tl.float64)
    squares = tl.zeros((BLOCK,), tl.float64)
    for block in range(blocks):
        at = begin + block * BLOCK + lane
        row, kept, score = members(scores, mask, order, at, end)
        advantage = tl.where(kept, (score - mean - rest) / divisor, 0.0)
        total += advantage
        squares += advantage * advantage
        tl.store(advantages + row, advantage.to(advantages.dtype.element_ty), mask=at < end)

    moments = group_moments + group * 3
    tl.store(moments, count)
    tl.store(moments + 1, tl.sum(total, axis=0))
    tl.store(moments + 2, tl.sum(squares, axis=0))
