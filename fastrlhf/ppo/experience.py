"""Experience: a rollout with everything that the update needs, computed once and frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastrlhf.kernels import masked_moments, whiten
from fastrlhf.ppo.advantages import Advantages, estimate_advantages, has_signal
from fastrlhf.ppo.rewards import token_rewards
from fastrlhf.ppo.rollout import Rollout


class Evaluation(NamedTuple):
    """What the models say of a rollout, all `[B, R]` and float32; None for what nobody asked.

    logprobs, ref_logprobs: of the sampled tokens, under the policy that is about to change and the reference.
    values: of the states in which they were chosen, and of the one after the end.
    """

    logprobs: torch.Tensor | None
    ref_logprobs: torch.Tensor | None
    values: torch.Tensor | None


@dataclass
class Experience:
    """All `[B, R]` and float32 but for `rollout`, `scores` (`[B]`) and the masks; zero at padding.

    Attributes:
        logprobs, ref_logprobs, values: see `Evaluation`.
        kl, penalty: each token's KL to the reference (nats), and what it takes from the reward.
        advantages, returns: of each token, the advantages whitened; no returns without a critic.
        weights: importance weights of an off-policy correction, or None.
        mask, state_mask: bool, the tokens and the states that are learned from.
    """

    rollout: Rollout
    scores: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor | None
    kl: torch.Tensor
    penalty: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor | None
    weights: torch.Tensor | None
    mask: torch.Tensor
    state_mask: torch.Tensor


def make_experience(
    rollout: Rollout,
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    values: torch.Tensor | None,
    *,
    kl_coef: float,
    kl_estimator: str,
    reward_position: str,
    whiten_rewards: bool,
    gamma: float,
    lam: float,
    correction_cap: float | None,
    advantage_estimator: str = "gae",
    num_generations: int = 1,
    skip_flat_groups: bool = False,
) -> Experience:
    """Rewards, advantages and returns of a rollout that models have evaluated (see `Experience` for shapes).

    Args:
        kl_coef: of the penalty in the reward.
        skip_flat_groups: learn nothing from groups of `num_generations` rows whose scores are all equal.
    """
    mask, state_mask = rollout.mask, rollout.state_mask
    if skip_flat_groups:
        kept = has_signal(scores, num_generations)[:, None]
        mask, state_mask = mask & kept, state_mask & kept
    values = None if values is None else torch.where(rollout.state_mask, values, 0.0)
    shaped = token_rewards(
        logprobs,
        ref_logprobs,
        scores,
        rollout,
        kl_coef=kl_coef,
        kl_estimator=kl_estimator,
        reward_position=reward_position,
    )
    rewards = shaped.rewards
    if whiten_rewards:
        rewards = whiten(rewards, state_mask, masked_moments(rewards, state_mask), shift_mean=False)
    estimate: Advantages = estimate_advantages(
        rewards,
        values,
        mask,
        state_mask,
        estimator=advantage_estimator,
        gamma=gamma,
        lam=lam,
        group_size=num_generations,
    )
    return Experience(
        rollout=rollout,
        scores=scores,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        kl=shaped.kl,
        penalty=shaped.penalty,
        advantages=estimate.advantages,
        returns=estimate.returns,
        weights=off_policy_correction(logprobs, rollout, correction_cap),
        mask=mask,
        state_mask=state_mask,
    )


def off_policy_correction(
    logprobs: torch.Tensor | None, rollout: Rollout, cap: float | None
) -> torch.Tensor | None:
    """Truncated importance weights: min(p_trainer / p_generator, cap) of each sampled token.

    Source: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025).
    """
    if cap is None or rollout.sampled_logprobs is None:
        return None
    ratio = (logprobs - rollout.sampled_logprobs).exp().clamp(max=cap)
    return torch.where(rollout.mask, ratio, 1.0)
