"""From the rewards of completions to their advantages, as GRPO and RLOO have them."""

from __future__ import annotations

import torch

from fastrlhf.kernels import group_advantages

EPSILON = 1e-4  # what is added to a standard deviation


def total_rewards(rewards: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """`[B]`: the weighted sum of `rewards` `[B, rewards]` that are not NaN; NaN where all are."""
    total = (rewards * weights).nansum(dim=1)
    return torch.where(rewards.isnan().all(dim=1), torch.nan, total)


def grpo_advantages(rewards: torch.Tensor, group_size: int, scale: str) -> torch.Tensor:
    """`[B]`: rewards less their group's mean, scaled by the deviation in the "group", in the "batch" or by "none".

    Sources: Shao et al., "DeepSeekMath" (2024), section 4.1.2; Liu et al., "Tricks or traps?" (2025) for "batch".

    Args:
        rewards: `[B]`, groups of consecutive rows; a NaN has no part in its group, and no advantage.
    """
    scored = ~rewards.isnan()
    estimator = "grpo" if scale == "group" else "dr_grpo"
    advantages = _of_groups(rewards, scored, group_size, estimator)
    return advantages / (deviation(rewards) + EPSILON) if scale == "batch" else advantages


def decoupled_advantages(rewards: torch.Tensor, weights: torch.Tensor, group_size: int) -> torch.Tensor:
    """`[B]`: each reward scaled within its group, the weighted sum of them scaled over the batch.

    Source: Liu et al., "GDPO" (2026).

    Args:
        rewards: `[B, rewards]`, NaN where a reward has nothing to say.
    """
    each = [_of_groups(column, ~column.isnan(), group_size, "grpo") for column in rewards.unbind(dim=1)]
    scaled = torch.where(rewards.isnan(), torch.nan, torch.stack(each, dim=1))
    return standardised(total_rewards(scaled, weights))


def rloo_advantages(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """`[B]`: rewards less the mean of the others of their group (Ahmadian et al., "Back to basics", 2024, eq. 6).

    Args:
        rewards: `[B]`, NaN where there is none; one alone in its group has no advantage.
    """
    scored = ~rewards.isnan()
    others = scored.view(-1, group_size).sum(dim=1).repeat_interleave(group_size) - 1
    return _of_groups(rewards, scored & (others > 0), group_size, "rloo")


def have_signal(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """`[groups]`, bool: whether a group has two different rewards (NaN is none)."""
    groups = rewards.view(-1, group_size)
    low, high = groups.nan_to_num(nan=torch.inf).amin(dim=1), groups.nan_to_num(nan=-torch.inf).amax(dim=1)
    return high - low > 1e-8


def standardised(values: torch.Tensor) -> torch.Tensor:
    """`[B]`: the values that are not NaN with zero mean and unit variance; zero for the others."""
    scaled = (values - values.nanmean()) / (deviation(values) + EPSILON)
    return scaled.nan_to_num(nan=0.0)


def deviation(values: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    """The standard deviation (unbiased) of the values that are not NaN; NaN of fewer than two."""
    if dim is None:
        values, dim = values.flatten(), 0
    count = (~values.isnan()).sum(dim=dim)
    squares = (values - values.nanmean(dim=dim, keepdim=True)).square().nansum(dim=dim)
    return (squares / (count - 1)).sqrt().where(count > 1, torch.nan)


def _of_groups(rewards: torch.Tensor, scored: torch.Tensor, group_size: int, estimator: str) -> torch.Tensor:
    return group_advantages(
        rewards.nan_to_num(nan=0.0),
        group_size=group_size,
        mask=scored,
        estimator=estimator,
        epsilon=EPSILON,
    ).advantages
