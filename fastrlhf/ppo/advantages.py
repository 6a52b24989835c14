"""Advantages of tokens: the part of the loop that makes it PPO, RLOO, GRPO or REINFORCE++."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.kernels import gae, group_advantages, whiten
from fastrlhf.kernels.group_advantages import GROUP_ESTIMATORS

ESTIMATORS = ("gae", *GROUP_ESTIMATORS, "reinforce++")


class Advantages(NamedTuple):
    """`[B, R]`: advantages, and returns for a critic (None without one)."""

    advantages: torch.Tensor
    returns: torch.Tensor | None


def estimate_advantages(
    rewards: torch.Tensor,
    values: torch.Tensor | None,
    mask: torch.Tensor,
    state_mask: torch.Tensor,
    *,
    estimator: str,
    gamma: float,
    lam: float,
    group_size: int,
) -> Advantages:
    """Advantages of each token by one of `ESTIMATORS`.

    - "gae": of `rewards` and a critic's `values`, whitened.
    - "grpo", "dr_grpo", "rloo": each row's sum of rewards (the KL penalty in it) against those of its group (see
      `group_advantages`), the same for all its tokens.
    - "reinforce++": the discounted sum of the rewards to come, whitened over all tokens of the batch (Hu et al.,
      "REINFORCE++" (2025), section 3).

    Args:
        rewards, values: `[B, R]`; values None where the estimator needs none.
        mask, state_mask: `[B, R]`, bool: tokens, and states, that are learned from.
        group_size: consecutive rows of one prompt.
    """
    if estimator in GROUP_ESTIMATORS:
        sums = torch.where(state_mask, rewards, 0.0).sum(dim=1)
        # rows that are left out are so by whole groups, and of a group of one "rloo" has nothing to say
        of_row = group_advantages(sums, group_size=group_size, estimator=estimator).advantages
        return Advantages(torch.where(mask, of_row[:, None], 0.0), None)
    if estimator == "reinforce++":
        # without a critic and with lambda one the estimate is the return
        values, lam = torch.zeros_like(rewards), 1.0
    estimate = gae(rewards, values, state_mask, gamma=gamma, lam=lam, moments_mask=mask)
    returns = estimate.returns if estimator == "gae" else None
    return Advantages(whiten(estimate.advantages, mask, estimate.moments), returns)


def has_signal(scores: torch.Tensor, group_size: int) -> torch.Tensor:
    """`[B]`, bool: the rows whose group of consecutive rows has different scores."""
    groups = scores.view(-1, group_size)
    differ = (groups != groups[:, :1]).any(dim=1)
    return differ.repeat_interleave(group_size)
