"""Advantages of responses over the others to the same prompt: contract, registration and public function."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import float32_inputs
from fastrlhf.kernels.checks import (
    FLOATS,
    check_at_least,
    check_dims,
    check_dtype,
    check_same_device,
    check_shape,
)
from fastrlhf.kernels.registration import operation

GROUP_ESTIMATORS = ("grpo", "dr_grpo", "rloo")


class GroupAdvantages(NamedTuple):
    """What `group_advantages` returns."""

    advantages: torch.Tensor
    moments: torch.Tensor


def group_advantages(
    scores: torch.Tensor,
    *,
    group_size: int | None = None,
    groups: torch.Tensor | None = None,
    mask: torch.Tensor | None = None,
    estimator: str = "grpo",
    epsilon: float = 1e-4,
) -> GroupAdvantages:
    """Advantages of responses, the scores of the others to the same prompt in the place of a critic.

    Sources: Shao et al., "DeepSeekMath" (2024), section 4.1.2 (GRPO); Liu et al., "Understanding R1-Zero-like training"
    (2025), section 3.2 (Dr. GRPO); Ahmadian et al., "Back to basics" (2024), eq. 6 (RLOO). With the mean and the
    (unbiased) standard deviation of the n kept scores r of a group:

        "grpo":     (r - mean) / (std + epsilon)
        "dr_grpo":  r - mean
        "rloo":     r - the mean of the others, which is (r - mean) n / (n - 1)

    Equal scores get zero, and so does a response alone in its group, for which "rloo" is not defined. A score that is
    not finite makes the advantages of its group NaN.

    Args:
        scores: `[B]`, float.
        group_size: for groups of consecutive rows, all of this size, which divides B.
        groups: `[B]`, int64 in [0, B): the group of each row, for groups of any size and order. This or `group_size`.
        mask: `[B]`, bool: the rows that count. The others get zero, and are in no mean. All count if None.
        estimator: "grpo", "dr_grpo" or "rloo".
        epsilon: more than 0; for "grpo".

    Returns:
        advantages, `[B]` in the dtype of `scores` (computed in float64: deviations from large scores are small), and
        moments, float64 `[3]`: count, sum and sum of squares of the advantages of the rows that count, which `whiten`
        takes (micro-batches and ranks add them up first).

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or options that do not fit; "rloo" with a response alone in its
            group (on a CPU; a GPU is not made to wait for this check and the next, and gives NaN).
        IndexError: an id in `groups` outside of [0, B).

    Memory: the outputs, and a few float64 numbers a group (with `groups`, a row).
    """
    (scores,) = float32_inputs(scores)
    check_dims("scores", scores, 1, "[B]")
    check_dtype("scores", scores, FLOATS)
    rows = scores.shape[0]
    for name, tensor, dtype in (("groups", groups, torch.int64), ("mask", mask, torch.bool)):
        if tensor is not None:
            check_shape(name, tensor, (rows,), "[B]")
            check_dtype(name, tensor, (dtype,))
    check_same_device(scores=scores, groups=groups, mask=mask)
    if (group_size is None) == (groups is None):
        raise ValueError("give either group_size or groups")
    if group_size is not None and (group_size < 1 or rows % group_size):
        raise ValueError(
            f"group_size is {group_size}, expected a number that divides the {rows} rows of scores"
        )
    if estimator not in GROUP_ESTIMATORS:
        raise ValueError(f"estimator is {estimator!r}, expected one of {', '.join(GROUP_ESTIMATORS)}")
    if estimator == "rloo" and group_size == 1:
        raise ValueError("estimator 'rloo' compares a response with others, but group_size is 1")
    check_at_least("epsilon", epsilon, 0, strict=True)
    return GroupAdvantages(
        *_group_advantages(scores, mask, groups, group_size or 1, estimator, float(epsilon))
    )


@dispatch.costs("group_advantages")
def _cost(scores, mask, groups, group_size, estimator, epsilon) -> Cost:
    return Cost(nbytes(scores, mask, groups), nbytes(scores) + 3 * 8, 10 * scores.numel())


@operation("group_advantages")
def _group_advantages(
    scores: torch.Tensor,
    mask: torch.Tensor | None,
    groups: torch.Tensor | None,
    group_size: int,
    estimator: str,
    epsilon: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    if scores.device.type == "cpu":
        _check_groups(scores.shape[0], mask, groups, group_size, estimator)
    return dispatch.call("group_advantages", scores, mask, groups, group_size, estimator, epsilon)


@_group_advantages.register_fake
def _(scores, mask, groups, group_size, estimator, epsilon):
    return scores.new_empty(scores.shape), scores.new_empty(3, dtype=torch.float64)


def _check_groups(
    rows: int, mask: torch.Tensor | None, groups: torch.Tensor | None, group_size: int, estimator: str
) -> None:
    if groups is not None and rows:
        low, high = int(groups.min()), int(groups.max())
        if low < 0 or high >= rows:
            raise IndexError(f"groups lie in [{low}, {high}], expected [0, {rows}) (the rows of scores)")
    if estimator != "rloo" or (groups is None and mask is None):
        return
    ids = torch.arange(rows) // group_size if groups is None else groups
    sizes = torch.bincount(ids if mask is None else ids[mask])
    if (sizes == 1).any():
        alone = int((sizes == 1).nonzero()[0])
        raise ValueError(
            f"estimator 'rloo' compares a response with others, but one alone counts in group {alone}"
        )
