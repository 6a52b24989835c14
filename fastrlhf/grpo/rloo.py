"""The drop-in trainer: TRL 1.16's `RLOOTrainer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from fastrlhf.grpo.advantages import rloo_advantages, standardised
from fastrlhf.grpo.arguments import refuse
from fastrlhf.grpo.config import RLOOConfig
from fastrlhf.grpo.experience import GroupExperience
from fastrlhf.grpo.group import GroupTrainer
from fastrlhf.grpo.loss import GroupLoss, Minibatch, RLOOLoss
from fastrlhf.kernels import kl_estimate
from fastrlhf.models.actor_critic import ActorCriticOutput
from fastrlhf.ppo.experience import Evaluation


class RLOOTrainer(GroupTrainer):
    """Train a language model by REINFORCE with the other completions of the prompt as the baseline.

    Signature, defaults, methods and logged metrics are those of `trl==1.16.0`'s `RLOOTrainer`; `GRPOTrainer` says what
    the arguments are.
    """

    _tag_names = ("fastrlhf", "rloo")
    config_class = RLOOConfig

    def __init__(
        self,
        model: str | nn.Module,
        reward_funcs: str | nn.Module | Callable | list,
        args: RLOOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
    ):
        refuse(quantization_config=quantization_config)
        super().__init__(
            model,
            reward_funcs,
            args,
            train_dataset,
            eval_dataset,
            processing_class,
            reward_processing_classes,
            callbacks,
            optimizers,
            peft_config,
        )
        args = self.args
        self.group_loss = RLOOLoss(
            args.epsilon, args.epsilon if args.epsilon_high is None else args.epsilon_high
        )

    @property
    def kl_in_reward(self) -> bool:
        """Whether rewards are less the KL to the reference."""
        return self.args.beta != 0

    def shaped(self, total: torch.Tensor, found: Evaluation, mask: torch.Tensor) -> torch.Tensor:
        """`[B]`: the sum of the rewards, clipped, less the KL."""
        if self.args.reward_clip_range is not None:
            total = total.clamp(*self.args.reward_clip_range)
        return total - self.args.beta * _kl(found, mask).sum(dim=1) if self.kl_in_reward else total

    def watched_kl(self, found: Evaluation, mask: torch.Tensor) -> torch.Tensor | None:
        """Mean KL of a token, where it is in the reward."""
        return _kl(found, mask).sum() / mask.sum().clamp(min=1) if self.kl_in_reward else None

    def advantages(self, rewards: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """`[B]`: each completion's, against the mean of the others of its group."""
        advantages = rloo_advantages(total, self.args.num_generations)
        if self.args.normalize_advantages:
            advantages = standardised(torch.where(total.isnan(), torch.nan, advantages))
        return advantages

    def loss(
        self,
        output: ActorCriticOutput,
        experience: GroupExperience,
        rows: torch.Tensor,
        denominators: Minibatch,
    ) -> GroupLoss:
        """RLOO's loss of a micro-batch."""
        part = experience.part(rows, output.logprobs.shape[1])
        return self.group_loss(output, part, denominators)


def _kl(found: Evaluation, mask: torch.Tensor) -> torch.Tensor:
    return torch.where(mask, kl_estimate(found.logprobs, found.ref_logprobs, "k1"), 0.0)
