"""PPO's loss of a micro-batch, as the options say."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.kernels import PPOLoss, ppo_loss
from fastrlhf.models.actor_critic import ActorCriticOutput
from fastrlhf.ppo.config import PPOConfig
from fastrlhf.ppo.experience import Experience


class Denominators(NamedTuple):
    """Tokens and states of a minibatch, scalars."""

    tokens: torch.Tensor
    states: torch.Tensor


def objective(
    args: PPOConfig,
    kl_coef: float,
    output: ActorCriticOutput,
    experience: Experience,
    rows: torch.Tensor,
    denominators: Denominators,
) -> PPOLoss:
    """See `fastrlhf.kernels.ppo_loss`.

    Args:
        kl_coef: of the KL in the loss; zero where it is in the reward.
        output: of the models, for `rows`; it may have fewer columns than the experience.
    """
    columns = slice(output.logprobs.shape[1])

    def of_rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
        return None if tensor is None else tensor[rows, columns]

    return ppo_loss(
        output.logprobs,
        of_rows(experience.logprobs),
        of_rows(experience.advantages),
        of_rows(experience.mask),
        values=output.values,
        old_values=of_rows(experience.values),
        returns=of_rows(experience.returns),
        value_mask=of_rows(experience.state_mask),
        entropy=output.entropy,
        ref_logprobs=of_rows(experience.ref_logprobs) if kl_coef else None,
        weights=of_rows(experience.weights),
        denominator=denominators.tokens,
        value_denominator=denominators.states,
        cliprange=args.cliprange,
        cliprange_high=args.cliprange_high,
        dual_clip=args.dual_clip,
        log_ratio_clamp=args.log_ratio_clamp,
        cliprange_value=args.cliprange_value,
        vf_coef=args.vf_coef,
        entropy_coef=args.entropy_coef,
        kl_coef=kl_coef,
        kl_estimator=args.kl_estimator,
    )
