"""Measures of a rollout under TRL's names, and the averages over the steps between two logs."""

from __future__ import annotations

import math

import torch

from fastrlhf.grpo.advantages import deviation
from fastrlhf.ppo.rollout import Rollout


def length_measures(rollout: Rollout, truncated: torch.Tensor) -> dict[str, float]:
    """Lengths of the completions, and of those that ended.

    Args:
        truncated: `[B]`, bool: the completions without an end token.
    """
    lengths, truncated = rollout.lengths.float().cpu(), truncated.cpu()
    ended = lengths[~truncated] if not truncated.all() else torch.zeros(1)
    return {
        "completions/mean_length": lengths.mean().item(),
        "completions/min_length": lengths.min().item(),
        "completions/max_length": lengths.max().item(),
        "completions/clipped_ratio": truncated.float().mean().item(),
        "completions/mean_terminated_length": ended.mean().item(),
        "completions/min_terminated_length": ended.min().item(),
        "completions/max_terminated_length": ended.max().item(),
    }


def reward_measures(
    rewards: torch.Tensor, total: torch.Tensor, names: list[str], groups: torch.Tensor
) -> dict[str, float]:
    """Mean and deviation of each reward and of their weighted sum, over the completions that have one.

    Args:
        rewards, total: `[B, rewards]` and `[B]`, NaN where there is none.
        groups: `[groups, completions]`, the rewards as they are compared; a group is flat where they are all the same.
    """
    found = {}
    for name, column in zip(names, rewards.cpu().unbind(dim=1), strict=True):
        found[f"rewards/{name}/mean"] = column.nanmean().item()
        found[f"rewards/{name}/std"] = deviation(column).item()
    total = total.cpu()
    return {
        **found,
        "reward": total.nanmean().item(),
        "reward_std": deviation(total).item(),
        "frac_reward_zero_std": (deviation(groups, dim=1) < 1e-8).float().mean().item(),
    }


class Pending:
    """Values of metrics since the last log."""

    LAST = ("grad_norm", "learning_rate", "num_tokens", "eps")

    def __init__(self, values: dict[str, list[float]] | None = None):
        self.values = dict(values or {})

    def add(self, metrics: dict[str, float]) -> None:
        """Count one step, or one update."""
        for name, value in metrics.items():
            self.values.setdefault(name, []).append(value)

    def flush(self) -> dict[str, float | None]:
        """The mean of each (of what is not NaN; None where all is), or its last, and begin anew."""
        found = {}
        for name, values in self.values.items():
            known = [value for value in values if not math.isnan(value)]
            if name in self.LAST:
                found[name] = values[-1]
            else:
                found[name] = sum(known) / len(known) if known else None
        self.values = {}
        return found
