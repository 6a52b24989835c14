"""The drop-in trainer: TRL 1.12's `PPOTrainer`, built on `transformers.Trainer`'s callbacks, optimizers and logging."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from transformers import TrainerCallback

from fastrlhf.data.prompts import PromptCollator, check_prompts, ensure_pad_token, tokenize_prompts
from fastrlhf.kernels import PPOLoss
from fastrlhf.models.actor_critic import ActorCriticOutput
from fastrlhf.models.backbone import base_model, context_length, hidden_size
from fastrlhf.models.heads import ValueHead
from fastrlhf.ppo.arguments import (
    as_list,
    check_additions,
    check_models,
    check_policy,
    check_rollout_weights,
    stop_tokens,
)
from fastrlhf.ppo.batches import resolve_batch_sizes
from fastrlhf.ppo.completions import ShowsCompletions
from fastrlhf.ppo.config import PPOConfig
from fastrlhf.ppo.experience import Evaluation, Experience, make_experience
from fastrlhf.ppo.longest import try_longest
from fastrlhf.ppo.metrics import step_metrics
from fastrlhf.ppo.objective import Denominators, objective
from fastrlhf.ppo.online import Needs, OnlineTrainer, Plan
from fastrlhf.ppo.pretraining import Pretraining, pretraining_losses
from fastrlhf.ppo.rewards import KLController, RewardFunction, Scorer
from fastrlhf.ppo.roles import mix_reference, prepare_policy
from fastrlhf.ppo.rollout import Rollout
from fastrlhf.ppo.shaping import RunningMoments, overlong_penalty
from fastrlhf.ppo.stats import UpdateStats
from fastrlhf.trainers.config import take_back_bfloat16


class PPOTrainer(ShowsCompletions, OnlineTrainer):
    """Train a language model by proximal policy optimisation.

    Signature, defaults, methods and logged metrics are those of `trl==1.12.0`'s `trl.experimental.ppo.PPOTrainer`, so
    that a script written for it runs when its import line changes; `docs/differences.md` lists where the two differ.

    Args:
        args: a `PPOConfig`.
        processing_class: the tokenizer.
        model: the policy, an `AutoModelForCausalLM` or a PEFT model around one.
        ref_model: the reference. None: the policy with its adapter off (PEFT), or a frozen copy of it.
        reward_model: an `AutoModelForSequenceClassification`, a function `(prompts: list[str], completions: list[str])
            -> list[float]`, or a list of these, weighted by `args.reward_weights`.
        train_dataset: rows with `input_ids` (tokens) or `prompt` (text).
        value_model: the critic, an `AutoModelForSequenceClassification`. None: a value head on the policy's base, or no
            critic where `args.advantage_estimator` needs none.
        data_collator: makes `input_ids` (and `attention_mask`) of a list of rows; pads on the left by default.
        eval_dataset: prompts for `generate_completions`.
        optimizers: optimizer and scheduler in place of those that `args` describe.
        callbacks: `transformers.TrainerCallback`s.
        peft_config: adapts the policy; then `model` must not be a PEFT model yet.
        pretrain_dataset: text for `args.ptx_coef`, rows with `input_ids` or `prompt`.

    Raises:
        ValueError, TypeError: an argument that cannot be meant; the message names it and the mend.
    """

    _tag_names = ("fastrlhf", "ppo")

    def __init__(
        self,
        args: PPOConfig,
        processing_class: Any,
        model: nn.Module,
        ref_model: nn.Module | None,
        reward_model: nn.Module | RewardFunction | Sequence[nn.Module | RewardFunction],
        train_dataset: Any,
        value_model: nn.Module | None,
        data_collator: Callable[[list[dict]], dict[str, torch.Tensor]] | None = None,
        eval_dataset: Any = None,
        optimizers: tuple[torch.optim.Optimizer | None, Any] = (None, None),
        callbacks: list[TrainerCallback] | None = None,
        peft_config: Any = None,
        pretrain_dataset: Any = None,
    ):
        if train_dataset is None:
            raise ValueError("train_dataset is None: PPO needs prompts")
        check_models(model, ref_model, reward_model, value_model)
        model = prepare_policy(args, model, ref_model, value_model, as_list(reward_model), peft_config)
        check_additions(args, model, ref_model, value_model, pretrain_dataset)
        vocab_size = base_model(model).config.get_text_config().vocab_size
        self.pad_token_id = ensure_pad_token(processing_class, vocab_size)
        check_policy(model, ref_model, args.ref_adapter_name)
        take_back_bfloat16(args)

        train_dataset = tokenize_prompts(train_dataset, processing_class)
        eval_dataset = tokenize_prompts(eval_dataset, processing_class, "eval_dataset")
        check_prompts(train_dataset, context_length(model), args.response_length)
        if eval_dataset is not None:
            check_prompts(eval_dataset, context_length(model), args.response_length, "eval_dataset")
        resolve_batch_sizes(args, len(train_dataset))
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator or PromptCollator(processing_class),
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.stop_token_ids = stop_tokens(args, processing_class)
        self.plan = Plan(
            rows=args.local_batch_size,
            num_generations=args.num_generations,
            epochs=args.num_ppo_epochs,
            minibatch_rows=args.local_mini_batch_size,
            steps=args.num_total_batches,
            steps_per_rollout=1,
        )
        has_critic = args.advantage_estimator == "gae"
        self.needs = Needs(logprobs=True, ref_logprobs=True, values=has_critic)
        self.total_epochs = args.total_episodes / (len(train_dataset) * args.num_generations)
        self.model_adapter_name, self.ref_adapter_name = args.model_adapter_name, args.ref_adapter_name
        self.reward_model = reward_model
        self.scorer = Scorer(reward_model, args.reward_weights, processing_class, args.packing)
        self.kl_controller = KLController(args.kl_coef, args.adaptive_kl_target, args.adaptive_kl_horizon)
        self.score_moments = RunningMoments()
        self.pretraining = None
        if args.ptx_coef:
            text = tokenize_prompts(pretrain_dataset, processing_class, "pretrain_dataset")
            self.pretraining = Pretraining(text, context_length(model), self.data_seed)
        if has_critic and value_model is None:
            value_model = ValueHead(hidden_size(model))
        self.set_up(
            model,
            ref_model,
            value_model,
            detach_value=args.detach_value,
            entropy_grad=args.entropy_coef != 0,
        )
        check_rollout_weights(args.rollout_weights, model)

    def before_first_step(self) -> None:
        """Find out early whether the longest sequences fit."""
        try_longest(self)

    @property
    def response_length(self) -> int:
        """The longest response, in tokens."""
        return self.args.response_length

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings of the generator."""
        return {
            "max_new_tokens": self.args.response_length,
            "stop_token_ids": self.stop_token_ids,
            "temperature": self.args.temperature,
        }

    @property
    def rollout_weights(self) -> str | None:
        """What rollouts compute with in place of the weights."""
        return self.args.rollout_weights

    @property
    def counts_padding(self) -> bool:
        """Whether padding is evaluated too, to be averaged over."""
        return self.args.padded_averages

    # A step

    def score(self, rollout: Rollout) -> torch.Tensor:
        """`[B]`: the reward of each response, normalised and clipped, less the penalties for how it ends."""
        args = self.args
        states = self.reference_states.of(rollout)
        with self.autocast():
            scores = self.scorer(rollout, args.local_rollout_forward_batch_size, states)
        if args.normalize_rewards:
            scores = self.score_moments.normalise(scores)
        if args.reward_clip is not None:
            scores = scores.clamp(-args.reward_clip, args.reward_clip)
        if args.missing_eos_penalty is not None:
            scores = scores - args.missing_eos_penalty * ~rollout.contains(self.processing_class.eos_token_id)
        if args.overlong_buffer is not None:
            reach = overlong_penalty(rollout.lengths, args.response_length, args.overlong_buffer)
            scores = scores - args.overlong_penalty * reach
        return scores

    def make_experience(self, rollout: Rollout, scores: torch.Tensor, found: Evaluation) -> Experience:
        """Rewards made into advantages as `args.advantage_estimator` says."""
        args = self.args
        return make_experience(
            rollout,
            scores,
            *found,
            kl_coef=self.kl_controller.kl_coef if args.kl_in == "reward" else 0.0,
            kl_estimator=args.kl_estimator,
            reward_position=args.reward_position,
            whiten_rewards=args.whiten_rewards,
            gamma=args.gamma,
            lam=args.lam,
            correction_cap=args.rollout_correction_cap,
            advantage_estimator=args.advantage_estimator,
            num_generations=args.num_generations,
            skip_flat_groups=args.skip_flat_groups,
        )

    def new_stats(self) -> UpdateStats:
        """What gathers the statistics of a step's updates."""
        return UpdateStats(padded=self.args.padded_averages)

    def denominators(self, experience: Experience, rows: torch.Tensor) -> Denominators:
        """Tokens and states of a minibatch."""
        return Denominators(experience.mask[rows].sum(), experience.state_mask[rows].sum())

    def loss(
        self,
        output: ActorCriticOutput,
        experience: Experience,
        rows: torch.Tensor,
        denominators: Denominators,
    ) -> PPOLoss:
        """PPO's loss of a micro-batch."""
        kl_coef = self.kl_controller.kl_coef if self.args.kl_in == "loss" else 0.0
        return objective(self.args, kl_coef, output, experience, rows, denominators)

    def pretraining_losses(self, rows: int) -> Iterator[torch.Tensor]:
        """The language model's loss on as many rows of text as a minibatch has."""
        if self.pretraining is None:
            return
        batch = self.pretraining.batch(next(self.update_numbers), rows)
        args = self.args
        for loss in pretraining_losses(
            self.policy_model,
            batch,
            args.per_device_train_batch_size,
            args.packing,
            args.device,
            self.autocast,
        ):
            yield args.ptx_coef * loss

    def conclude_step(self, experience: Experience, stats: UpdateStats, seconds: dict[str, float]) -> None:
        """Count the step, log its metrics, and steer what is steered by them."""
        args = self.args
        self.state.global_step += 1
        self.state.episode += args.batch_size
        self.state.epoch = self.state.episode / (len(self.train_dataset) * args.num_generations)
        metrics = step_metrics(self, experience, stats, seconds)
        self.lr_scheduler_step()
        self.kl_controller.update(metrics["objective/kl"], args.batch_size)
        if args.ref_reset_steps is not None and self.state.global_step % args.ref_reset_steps == 0:
            mix_reference(self.policy_model, self.ref_model, 1.0)
        self.log(metrics)
        self.control = self.callback_handler.on_step_end(args, self.state, self.control)

    @property
    def reference_changes(self) -> bool:
        """Whether a checkpoint has to hold the reference."""
        return self.args.ref_reset_steps is not None

    def carried(self) -> dict[str, Any]:
        """The KL coefficient and the moments of the scores."""
        return {"kl_coef": self.kl_controller.kl_coef, "score_moments": self.score_moments.as_list()}

    def carry(self, reached: dict[str, Any]) -> None:
        """Take up what `carried` gave."""
        self.kl_controller.kl_coef = reached["kl_coef"]
        self.score_moments = RunningMoments(*reached["score_moments"])
