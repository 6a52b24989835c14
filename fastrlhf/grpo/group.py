"""What GRPO's and RLOO's trainers share: all but how rewards become advantages, and the loss."""

from __future__ import annotations

import copy
import warnings
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import set_seed

from fastrlhf.data.prompts import ensure_pad_token
from fastrlhf.grpo.advantages import have_signal, total_rewards
from fastrlhf.grpo.arguments import (
    check_dropout,
    check_reference,
    check_router,
    load_policy,
    load_rewards,
    load_tokenizer,
)
from fastrlhf.grpo.completions import CompletionLog
from fastrlhf.grpo.config import GroupConfig
from fastrlhf.grpo.data import PromptRows, RowCollator, is_conversation
from fastrlhf.grpo.evaluation import EvaluatesGroups
from fastrlhf.grpo.experience import GroupExperience, Scored
from fastrlhf.grpo.loss import Minibatch
from fastrlhf.grpo.measures import Pending, length_measures, reward_measures
from fastrlhf.grpo.plan import make_plan, sampling_settings
from fastrlhf.grpo.rewards import Completed, Rewards
from fastrlhf.grpo.stats import GroupStats
from fastrlhf.models.backbone import base_model, context_length, end_tokens, is_peft
from fastrlhf.ppo.arguments import check_policy
from fastrlhf.ppo.experience import Evaluation, off_policy_correction
from fastrlhf.ppo.online import Needs, OnlineTrainer
from fastrlhf.ppo.roles import mix_reference, prepare_policy, reference_copy
from fastrlhf.ppo.rollout import Rollout
from fastrlhf.trainers.config import take_back_bfloat16


class GroupTrainer(EvaluatesGroups, OnlineTrainer):
    """Train a language model by comparing completions of the same prompt."""

    response_length_name = "max_completion_length"
    config_class: type[GroupConfig]

    def __init__(
        self,
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
    ):
        if args is None:
            name = model if isinstance(model, str) else base_model(model).config._name_or_path
            args = self.config_class(f"{name.split('/')[-1]}-{self._tag_names[-1].upper()}")
        if not isinstance(args, self.config_class):
            raise TypeError(f"args is a {type(args).__name__}, expected a {self.config_class.__name__}")
        if train_dataset is None:
            raise ValueError("train_dataset is None: there is no prompt to learn from")
        set_seed(args.seed)  # an adapter's weights are drawn
        model = load_policy(model, args)
        tokenizer = load_tokenizer(model, processing_class, args)
        functions, tokenizers = load_rewards(reward_funcs, reward_processing_classes, args)
        rewards = Rewards(
            functions, tokenizers, args.reward_weights, args.chat_template_kwargs or {}, args.packing
        )
        had_adapter = is_peft(model)
        model = prepare_policy(args, model, None, None, functions, peft_config)
        check_router(model, args)
        if not args.disable_dropout:
            check_dropout(model)
        # an adapter that was there before is part of what the reference is
        ref_model = reference_copy(model, args) if had_adapter and args.beta else None
        check_reference(args, model, ref_model)
        vocab_size = base_model(model).config.get_text_config().vocab_size
        self.pad_token_id = ensure_pad_token(tokenizer, vocab_size)
        check_policy(model, ref_model, None)
        take_back_bfloat16(args)
        prompts, held_out = (
            self._prompt_rows(dataset, name, model, tokenizer, args)
            for name, dataset in (("train_dataset", train_dataset), ("eval_dataset", eval_dataset))
        )
        self.plan = make_plan(args, len(prompts))
        self.total_epochs = self._epochs(self.plan.steps / self.plan.updates, len(prompts))
        super().__init__(
            model=model,
            args=args,
            data_collator=RowCollator(tokenizer),
            train_dataset=prompts,
            eval_dataset=held_out,
            processing_class=tokenizer,
            callbacks=callbacks,
            optimizers=optimizers,
        )
        self.stop_token_ids = end_tokens(model, tokenizer)
        self.scorer = rewards
        rewards.weights = rewards.weights.to(args.device)
        self.needs = Needs(
            logprobs=self.plan.updates > 1 or self.kl_in_reward or args.rollout_correction_cap is not None,
            ref_logprobs=args.beta != 0,
            values=False,
        )
        self.pending = Pending()
        self.completion_log = CompletionLog(
            rewards.names, args.num_completions_to_print, args.log_unique_prompts
        )
        self.set_up(model, ref_model, None, entropy_grad=self.trains_entropy)

    # What a subclass gives beside `loss`

    kl_in_reward = False
    trains_entropy = False

    @abstractmethod
    def advantages(self, rewards: torch.Tensor, total: torch.Tensor) -> torch.Tensor:
        """`[B]`: from rewards `[B, rewards]` and what became of their sum."""

    def shaped(self, total: torch.Tensor, found: Evaluation, mask: torch.Tensor) -> torch.Tensor:
        """`[B]`: what becomes of the sum of the rewards before completions are compared."""
        return total

    def watched_kl(self, found: Evaluation, mask: torch.Tensor) -> torch.Tensor | None:
        """Mean KL of a token, where a rollout shows it."""
        return None

    # Data

    @staticmethod
    def _prompt_rows(dataset: Any, name: str, model: nn.Module, tokenizer: Any, args: GroupConfig) -> Any:
        if dataset is None:
            return None
        if isinstance(dataset, dict):
            return {
                key: GroupTrainer._prompt_rows(part, f"{name}[{key!r}]", model, tokenizer, args)
                for key, part in dataset.items()
            }
        rows = PromptRows(dataset, tokenizer, args.chat_template_kwargs or {}, name)
        rows.check(context_length(model), sampling_settings(args)["max_new_tokens"])
        return rows

    @property
    def shuffles_prompts(self) -> bool:
        """Whether each epoch has an order of its own."""
        return bool(self.args.shuffle_dataset)

    @property
    def response_length(self) -> int:
        """The longest completion, in tokens."""
        return self.sampling["max_new_tokens"]

    @property
    def sampling(self) -> dict[str, Any]:
        """Settings of the generator."""
        return {**sampling_settings(self.args), "stop_token_ids": self.stop_token_ids}

    def minibatches(self, epoch: int) -> Iterator[torch.Tensor]:
        """Rows of each minibatch, until the run's last update."""
        for rows in super().minibatches(epoch):
            if self.state.global_step + self.updates_made < self.plan.steps:
                yield rows

    def _epochs(self, rollouts: float, prompts: int) -> float:
        return rollouts * (self.plan.rows // self.plan.num_generations) / prompts

    # A step

    def begin_step(self) -> None:
        """What a checkpoint of the state before this step needs, in case the step fails."""
        self.updates_made = 0
        super().begin_step()

    def score(self, rollout: Rollout) -> Scored:
        """What the rewards say of each completion."""
        copies = len(rollout.lengths) // len(rollout.rows)
        rows = [row for row in rollout.rows for _ in range(copies)]
        if self.args.remove_unused_columns:
            rows = [{"prompt": row["prompt"]} for row in rows]
        ids = [
            tokens[:length].tolist()
            for tokens, length in zip(rollout.response_ids.cpu(), rollout.lengths.cpu(), strict=True)
        ]
        texts = self.processing_class.batch_decode(ids, skip_special_tokens=True)
        prompts = [copy.deepcopy(row["prompt"]) for row in rows]
        completions = (
            [[{"role": "assistant", "content": text}] for text in texts]
            if is_conversation(prompts[0])
            else texts
        )
        completed = Completed(rows, prompts, completions, ids)
        with self.autocast():
            rewards = self.scorer(completed, self.state, self.args.local_rollout_forward_batch_size)
        silent = rewards.isnan().all(dim=1)
        if silent.any():
            row = int(silent.nonzero()[0])
            warnings.warn(
                f"every reward gave None for completion {row} (prompt {prompts[row]!r}): nothing is learned from it",
                stacklevel=2,
            )
        return Scored(completed, rewards.to(self.args.device), self._truncated(rollout))

    def make_experience(self, rollout: Rollout, scores: Scored, found: Evaluation) -> GroupExperience:
        """Rewards made into advantages, and the tokens that are learned from."""
        args, group = self.args, self.plan.num_generations
        mask = rollout.mask
        if args.mask_truncated_completions:
            mask = mask & ~scores.truncated[:, None]
        total = total_rewards(scores.rewards, self.scorer.weights)
        shaped = self.shaped(total, found, mask)
        if args.skip_flat_groups:
            mask = mask & have_signal(total, group).repeat_interleave(group)[:, None]
        return GroupExperience(
            rollout=rollout,
            scored=scores,
            shaped=shaped,
            advantages=self.advantages(scores.rewards, shaped),
            mask=mask,
            logprobs=found.logprobs,
            ref_logprobs=found.ref_logprobs,
            weights=off_policy_correction(found.logprobs, rollout, args.rollout_correction_cap),
            tokens=mask.sum().clamp(min=1),
            kl=self.watched_kl(found, mask),
        )

    def _truncated(self, rollout: Rollout) -> torch.Tensor:
        """`[B]`, bool: the completions without an end token."""
        last = rollout.response_ids.gather(1, (rollout.lengths - 1).clamp(min=0)[:, None])[:, 0]
        ends = torch.tensor([*self.stop_token_ids, self.pad_token_id], device=last.device)
        return ~torch.isin(last, ends)

    def new_stats(self) -> GroupStats:
        """What gathers the statistics of a step's updates."""
        self.stats = GroupStats()
        return self.stats

    def denominators(self, experience: GroupExperience, rows: torch.Tensor) -> Minibatch:
        """What sums over a minibatch are divided by."""
        tokens = experience.tokens * (len(rows) / self.plan.rows)
        return Minibatch(len(rows), tokens, self.args.gradient_accumulation_steps)

    def optimizer_step(self, loss: torch.Tensor) -> tuple[float, bool]:
        """An update, and what goes by updates: the learning rate's schedule, and the reference's."""
        learning_rate = self.lr_scheduler.get_last_lr()[0]
        norm, skipped = super().optimizer_step(loss)
        self.lr_scheduler_step()
        self.updates_made += 1
        self.pending.add({"learning_rate": learning_rate})
        step = self.state.global_step + self.updates_made
        if self.args.sync_ref_model and step % self.args.ref_model_sync_steps == 0:
            mix_reference(self.policy_model, self.ref_model, self.args.ref_model_mixup_alpha)
        return norm, skipped

    @property
    def reference_changes(self) -> bool:
        """Whether a checkpoint has to hold the reference."""
        return self.args.sync_ref_model

    def conclude_step(
        self, experience: GroupExperience, stats: GroupStats, seconds: dict[str, float]
    ) -> None:
        """Count the updates, let the callbacks say what is due after each, and log if it is."""
        rollout = experience.rollout
        self.state.episode += self.plan.rows
        self.state.num_input_tokens_seen += int(rollout.lengths.sum() + rollout.prompt_mask.sum())
        for metrics in stats.metrics():
            self.pending.add(metrics)
        if experience.kl is not None:
            self.pending.add({"kl": experience.kl.item()})
        self.pending.add(experience.scored.completed.said())
        tokens = int(rollout.lengths.sum())
        self.pending.add(
            {
                "num_tokens": self.state.num_input_tokens_seen,
                **length_measures(rollout, experience.scored.truncated),
                **self._reward_measures(experience.scored, experience.shaped, self.plan.num_generations),
                "step_time": seconds["step"] / self.updates_made,
                "train/skipped_updates": self.guard.skipped,
                "tokens_per_second": tokens / seconds["step"],
                **{f"time/{phase}": value for phase, value in seconds.items()},
                **self.extra_metrics(rollout),
            }
        )
        if self.args.log_completions:
            self.completion_log.add(experience)
        began = self.rollouts_done - 1
        for update in range(1, self.updates_made + 1):
            self.state.global_step += 1
            self.state.epoch = self._epochs(1, len(self.train_dataset)) * (began + update / self.plan.updates)
            self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
        if (self.control.should_log or self.control.should_training_stop) and self.pending.values:
            self.log(self.pending.flush())
            if self.args.log_completions:
                folder = Path(self.args.output_dir) / "completions"
                self.completion_log.write(folder, self.state.global_step, self.args.report_to)

    def _reward_measures(self, scored: Scored, shaped: torch.Tensor, copies: int) -> dict[str, float]:
        total = total_rewards(scored.rewards, self.scorer.weights)
        return reward_measures(scored.rewards, total, self.scorer.names, shaped.cpu().view(-1, copies))

    def carried(self) -> dict[str, Any]:
        """What has not been logged yet."""
        return {"pending": self.pending.values}

    def carry(self, reached: dict[str, Any]) -> None:
        """Take up what `carried` gave."""
        self.pending = Pending(reached["pending"])
