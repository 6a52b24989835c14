"""The drop-in trainer: TRL 1.16's `GRPOTrainer`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from fastrlhf.device.observe import host_waits
from fastrlhf.grpo.advantages import (
    decoupled_advantages,
    grpo_advantages,
)
from fastrlhf.grpo.arguments import refuse
from fastrlhf.grpo.config import GRPOConfig
from fastrlhf.grpo.entropy import EntropyController
from fastrlhf.grpo.experience import GroupExperience
from fastrlhf.grpo.group import GroupTrainer
from fastrlhf.grpo.loss import GroupLoss, GRPOLoss, Minibatch
from fastrlhf.models.actor_critic import ActorCriticOutput


class GRPOTrainer(GroupTrainer):
    """Train a language model by group-relative policy optimisation.

    Signature, defaults, methods and logged metrics are those of `trl==1.16.0`'s `GRPOTrainer`, so that a script written
    for it runs when its import line changes; `docs/grpo.md` lists where the two differ, and what is refused.

    Args:
        model: the policy, an `AutoModelForCausalLM`, a PEFT model around one, or a name or folder to read one from.
        reward_funcs: a function, an `AutoModelForSequenceClassification` (or its name), or a list of these (see
            `fastrlhf.grpo.rewards.Rewards`).
        args: a `GRPOConfig`.
        train_dataset: rows with `prompt`, a text or a list of messages; other columns go to the reward functions.
        eval_dataset: like it; or a dict of such.
        processing_class: the tokenizer, read from where the model is from if None.
        reward_processing_classes: the tokenizers of reward models; likewise.
        callbacks: `transformers.TrainerCallback`s.
        optimizers: optimizer and scheduler in place of those that `args` describe.
        peft_config: adapts the policy; then `model` must not be a PEFT model yet.
        quantization_config, tools, rollout_func, environment_factory: refused.

    Raises:
        ValueError, TypeError: an argument that cannot be meant; the message names it and the mend.
    """

    _tag_names = ("fastrlhf", "grpo")
    config_class = GRPOConfig

    def __init__(
        self,
        model: str | nn.Module,
        reward_funcs: str | nn.Module | Callable | list | None = None,
        args: GRPOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        reward_processing_classes: Any = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        quantization_config: Any = None,
        peft_config: Any = None,
        tools: list[Callable] | None = None,
        rollout_func: Callable | None = None,
        environment_factory: Any = None,
    ):
        refuse(
            quantization_config=quantization_config,
            tools=tools,
            rollout_func=rollout_func,
            environment_factory=environment_factory,
        )
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
        self.entropy = EntropyController(
            args.entropy_coef,
            args.entropy_target if args.use_adaptive_entropy else None,
            args.entropy_coef_delta,
            args.entropy_coef_min,
            args.entropy_coef_max,
        )
        self.group_loss = GRPOLoss(
            kind=args.loss_type,
            level=args.importance_sampling_level,
            epsilon=args.epsilon,
            epsilon_high=args.epsilon if args.epsilon_high is None else args.epsilon_high,
            delta=args.delta,
            beta=args.beta,
            corrects_kl=args.use_bias_correction_kl,
            top_entropy=args.top_entropy_quantile,
            off_policy_threshold=args.off_policy_mask_threshold,
            longest=args.max_completion_length,
        )

    @property
    def trains_entropy(self) -> bool:
        """Whether there is an entropy bonus."""
        return bool(self.args.entropy_coef) or self.args.use_adaptive_entropy

    def advantages(self, rewards: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """`[B]`: each completion's, against its group."""
        args = self.args
        if args.multi_objective_aggregation == "normalize_then_sum":
            return decoupled_advantages(rewards, self.scorer.weights, args.num_generations)
        return grpo_advantages(total, args.num_generations, args.scale_rewards)

    def loss(
        self,
        output: ActorCriticOutput,
        experience: GroupExperience,
        rows: torch.Tensor,
        denominators: Minibatch,
    ) -> GroupLoss:
        """GRPO's loss of a micro-batch."""
        part = experience.part(rows, output.logprobs.shape[1])
        return self.group_loss(output, part, denominators, self.entropy.applied)

    def optimizer_step(self, loss: torch.Tensor) -> tuple[float, bool]:
        """An update, and the entropy bonus steered by what it saw."""
        if self.entropy.steers:
            with host_waits("the entropy that its bonus is steered by"):
                self.entropy.update(float(self.stats.minibatch_entropy))
        if self.trains_entropy:
            self.pending.add({"entropy_coef": self.entropy.coef})
        return super().optimizer_step(loss)

    def carried(self) -> dict[str, Any]:
        """What has not been logged yet, and where the entropy's coefficient stands."""
        return {**super().carried(), "entropy_coef": self.entropy.coef, "last_entropy": self.entropy.last}

    def carry(self, reached: dict[str, Any]) -> None:
        """Take up what `carried` gave."""
        super().carry(reached)
        self.entropy.coef, self.entropy.last = reached["entropy_coef"], reached["last_entropy"]
