"""Experience: a rollout with everything that the update needs, computed once and frozen."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from fastrlhf.kernels import gae, masked_moments, whiten
from fastrlhf.ppo.rewards import token_rewards
from fastrlhf.ppo.rollout import Rollout


@dataclass
class Experience:
    """All `[B, R]` and float32 but for `rollout` and `scores` (`[B]`); zero at padding.

    Attributes:
        logprobs, ref_logprobs: of the sampled tokens, under the policy that is about to change and the reference.
        values: of the states in which they were chosen, and of the one after the end.
        kl, penalty: each token's KL to the reference (nats), and what it takes from the reward.
        advantages, returns: of each token, the advantages whitened.
        weights: importance weights of an off-policy correction, or None.
    """

    rollout: Rollout
    scores: torch.Tensor
    logprobs: torch.Tensor
    ref_logprobs: torch.Tensor
    values: torch.Tensor
    kl: torch.Tensor
    penalty: torch.Tensor
    advantages: torch.Tensor
    returns: torch.Tensor
    weights: torch.Tensor | None


def make_experience(
    rollout: Rollout,
    scores: torch.Tensor,
    logprobs: torch.Tensor,
    ref_logprobs: torch.Tensor,
    values: torch.Tensor,
    *,
    kl_coef: float,
    kl_estimator: str,
    reward_position: str,
    whiten_rewards: bool,
    gamma: float,
    lam: float,
    correction_cap: float | None,
) -> Experience:
    """Rewards, advantages and returns of a rollout that models have evaluated (see `Experience` for shapes)."""
    mask, state_mask = rollout.mask, rollout.state_mask
    values = torch.where(state_mask, values, 0.0)
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
    estimate = gae(rewards, values, state_mask, gamma=gamma, lam=lam, moments_mask=mask)
    return Experience(
        rollout=rollout,
        scores=scores,
        logprobs=logprobs,
        ref_logprobs=ref_logprobs,
        values=values,
        kl=shaped.kl,
        penalty=shaped.penalty,
        advantages=whiten(estimate.advantages, mask, estimate.moments),
        returns=estimate.returns,
        weights=_correction(logprobs, rollout, correction_cap),
    )


def _correction(logprobs: torch.Tensor, rollout: Rollout, cap: float | None) -> torch.Tensor | None:
    """Truncated importance weights: min(p_trainer / p_generator, cap) of each sampled token.

    Source: Yao et al., "Your efficient RL framework secretly brings you off-policy RL training" (2025).
    """
    if cap is None or rollout.sampled_logprobs is None:
        return None
    ratio = (logprobs - rollout.sampled_logprobs).exp().clamp(max=cap)
    return torch.where(rollout.mask, ratio, 1.0)
