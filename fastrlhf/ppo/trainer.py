"""The drop-in trainer: TRL 1.12's `PPOTrainer`, built on `transformers.Trainer`'s callbacks, optimizers and logging."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback

from fastrlhf.data.order import PromptOrder
from fastrlhf.data.prompts import PromptCollator, check_prompts, ensure_pad_token, left_pad, tokenize_prompts
from fastrlhf.generation.batches import generate, widen
from fastrlhf.memory.resident import peak_resident_mb, resident_mb
from fastrlhf.models.actor_critic import ActorCritic
from fastrlhf.models.backbone import base_model, context_length, evaluation_mode, hidden_size, is_peft
from fastrlhf.models.heads import ValueHead
from fastrlhf.ppo import loop, state
from fastrlhf.ppo.arguments import as_list, check_models, check_policy, stop_tokens
from fastrlhf.ppo.batches import minibatch_order, numbered_batches, resolve_batch_sizes
from fastrlhf.ppo.completions import ShowsCompletions
from fastrlhf.ppo.config import PPOConfig
from fastrlhf.ppo.experience import Experience
from fastrlhf.ppo.metrics import step_metrics
from fastrlhf.ppo.rewards import KLController, RewardError, RewardFunction, Scorer
from fastrlhf.ppo.roles import HasRoles, prepare_policy
from fastrlhf.ppo.rollout import Rollout, finish_responses
from fastrlhf.ppo.stats import UpdateStats
from fastrlhf.trainers.checkpoint import CheckpointError, find_checkpoint, save_checkpoint
from fastrlhf.trainers.guard import TrainingStopped, UpdateGuard
from fastrlhf.trainers.interrupt import Interrupts
from fastrlhf.trainers.models import frozen_copy
from fastrlhf.trainers.randomness import random_states, set_random_states


class PPOTrainer(ShowsCompletions, HasRoles, Trainer):
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
        value_model: the critic, an `AutoModelForSequenceClassification`. None: a value head on the policy's base.
        data_collator: makes `input_ids` (and `attention_mask`) of a list of rows; pads on the left by default.
        eval_dataset: prompts for `generate_completions`.
        optimizers: optimizer and scheduler in place of those that `args` describe.
        callbacks: `transformers.TrainerCallback`s.
        peft_config: adapts the policy; then `model` must not be a PEFT model yet.

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
    ):
        if train_dataset is None:
            raise ValueError("train_dataset is None: PPO needs prompts")
        check_models(model, ref_model, reward_model, value_model)
        model = prepare_policy(args, model, ref_model, value_model, as_list(reward_model), peft_config)
        vocab_size = base_model(model).config.get_text_config().vocab_size
        pad_token_id = ensure_pad_token(processing_class, vocab_size)
        check_policy(model, ref_model, args.ref_adapter_name)
        if args.bf16 and args.device.type == "cpu":
            warnings.warn(
                "bf16=True on a CPU computes in float32, where bfloat16 would be slower", stacklevel=2
            )
            args.bf16 = False

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
        self.pad_token_id = pad_token_id
        self.stop_token_ids = stop_tokens(args, processing_class)
        self.policy_model = model
        self.ref_model = ref_model
        if ref_model is None and not is_peft(model):
            self.ref_model = frozen_copy(model if args.device_memory else model.to(args.device))
        self.reward_model = reward_model
        self.scorer = Scorer(reward_model, args.reward_weights, processing_class, args.packing)
        value_model = ValueHead(hidden_size(model)) if value_model is None else value_model
        self.value_model = value_model
        self.model = ActorCritic(
            model,
            value_model,
            detach_value=args.detach_value,
            packing=args.packing,
            entropy_grad=args.entropy_coef != 0,
        )
        self.model_wrapped = self.model
        self.place_models()
        self.share_bottom()
        self.create_optimizer_and_scheduler(num_training_steps=args.num_total_batches)
        self.offload_models()
        self.callback_handler.model = self.model
        self.callback_handler.optimizer, self.callback_handler.lr_scheduler = (
            self.optimizer,
            self.lr_scheduler,
        )
        self.kl_controller = KLController(args.kl_coef, args.adaptive_kl_target, args.adaptive_kl_horizon)
        self.state = state.fresh_trainer_state(self)
        self.guard = UpdateGuard()
        self.interrupts = Interrupts()
        self.phase_listeners: list[Callable[[str], None]] = []
        self.random_states = random_states()
        self._save_failed = False
        self._saved: Path | None = None

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of prompts without end, in the order that the seed decides."""
        order = PromptOrder(len(self.train_dataset), self.args.batch_size, self.data_seed)
        return DataLoader(
            self.train_dataset,
            batch_sampler=order,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
        )

    @property
    def data_seed(self) -> int:
        """Seed of the order of prompts: the same on every rank."""
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def sampling_seed(self) -> int:
        """Seed of the generator: of its own on every rank."""
        return self.args.seed + 100_003 * self.args.process_index

    def prompt_batches(self) -> Iterator[dict[str, torch.Tensor]]:
        """The batches of the steps that are still to do, skipping those that a resumed run has done."""
        steps = range(self.state.global_step, self.args.num_total_batches)
        return numbered_batches(self.get_train_dataloader(), steps, self.data_seed)

    def minibatches(self, epoch: int) -> Iterator[torch.Tensor]:
        """Rows of each minibatch of one epoch over a batch, on the device."""
        seed = self.sampling_seed * 1_000_003 + self.state.global_step
        rows = minibatch_order(self.args.local_batch_size, epoch, seed)
        yield from rows.to(self.args.device, non_blocking=True).split(self.args.local_mini_batch_size)

    # A step's phases

    def generate_responses(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Responses `[B, R]`, int64, R at most `args.response_length`; override it to put in rollouts of your own.

        Args:
            input_ids: prompts `[B, P]`, padded on the left; attention_mask like it (bool).

        Returns:
            Tokens. What follows a row's first stop token or pad token is ignored.
        """
        return self._generate(input_ids, attention_mask, self.args.temperature)

    def _generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        """Tokens `[B, R]`; they and the generator's log-probabilities are kept in `_sampled`."""
        # in evaluation mode gradient checkpointing, which keeps no cache, is off
        with self.autocast(), evaluation_mode(self.policy_model):
            self._sampled = generate(
                self.policy_model,
                input_ids,
                attention_mask,
                batch_size=self.args.local_rollout_forward_batch_size,
                max_new_tokens=self.args.response_length,
                pad_token_id=self.pad_token_id,
                stop_token_ids=self.stop_token_ids,
                temperature=temperature,
                seed=self.sampling_seed,
                first_row_id=self.state.episode,
            )
        return self._sampled.tokens

    @torch.no_grad()
    def rollout(self, prompts: dict[str, torch.Tensor], generate: Callable | None = None) -> Rollout:
        """Responses to a batch of prompts, cut at their stop tokens."""
        input_ids = prompts["input_ids"].to(self.args.device)
        mask = prompts.get("attention_mask")
        mask = input_ids != self.pad_token_id if mask is None else mask.to(self.args.device)
        prompt_ids, prompt_mask = left_pad(input_ids, mask, self.pad_token_id)
        self._sampled = None
        tokens = (generate or self.generate_responses)(prompt_ids, prompt_mask).to(self.args.device)
        self._check_responses(tokens, len(prompt_ids))
        # an override may have changed what was sampled
        as_sampled = self._sampled is not None and torch.equal(tokens, self._sampled.tokens)
        # a column for the state after the longest response, where the score lands: else it would depend on the others
        tokens = widen(tokens, min(tokens.shape[1] + 1, self.args.response_length), self.pad_token_id)
        response_ids, lengths = finish_responses(tokens, self.stop_token_ids, self.pad_token_id)
        sampled = widen(self._sampled.logprobs, tokens.shape[1], 0.0) if as_sampled else None
        return Rollout(prompt_ids, prompt_mask, response_ids, lengths, sampled)

    def _check_responses(self, tokens: torch.Tensor, rows: int) -> None:
        longest = self.args.response_length
        if tokens.dim() != 2 or tokens.shape[0] != rows or not 1 <= tokens.shape[1] <= longest:
            raise ValueError(
                f"generate_responses gave shape {list(tokens.shape)}, expected [{rows}, R] with 1 <= R <= "
                f"response_length={longest}"
            )

    def score(self, rollout: Rollout) -> torch.Tensor:
        """`[B]`: the reward of each response, less the penalty for those without an end token."""
        with self.autocast():
            scores = self.scorer(rollout, self.args.local_rollout_forward_batch_size)
        if self.args.missing_eos_penalty is not None:
            scores = scores - self.args.missing_eos_penalty * ~rollout.contains(
                self.processing_class.eos_token_id
            )
        return scores

    def optimizer_step(self, loss: torch.Tensor) -> tuple[float, bool]:
        """Clip and step, unless the loss or the gradient is not finite.

        Returns:
            The gradient's norm before clipping, and whether the update was skipped.

        Raises:
            TrainingStopped: `args.max_skipped_updates` in a row were not finite.
        """
        norm, skipped = self.guard.step(
            self.optimizer, self.model.parameters(), loss, self.args.max_grad_norm
        )
        if not skipped:
            return norm, skipped
        in_a_row = self.guard.in_a_row
        warnings.warn(
            f"step {self.state.global_step + 1}: loss {loss.item()}, gradient norm {norm}: this update is skipped "
            f"({in_a_row} in a row)",
            stacklevel=2,
        )
        if in_a_row >= self.args.max_skipped_updates:
            raise TrainingStopped(f"{in_a_row} updates in a row were not finite")
        return norm, skipped

    def enter_phase(self, name: str) -> None:
        """Tell the listeners which phase begins."""
        for listener in self.phase_listeners:
            listener(name)

    def begin_step(self) -> None:
        """What a checkpoint of the state before this step needs, in case the step fails."""
        self.random_states = random_states()
        self.model.train()
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)

    def end_step(self, experience: Experience, stats: UpdateStats, seconds: dict[str, float]) -> bool:
        """Log, schedule, save and show completions as they are due. Returns whether the run ends here."""
        args = self.args
        self.state.global_step += 1
        self.state.episode += args.batch_size
        self.state.epoch = self.state.episode / len(self.train_dataset)
        metrics = step_metrics(self, experience, stats, seconds)
        self.lr_scheduler_step()
        self.kl_controller.update(metrics["objective/kl"], args.batch_size)
        self.log(metrics)
        self.control = self.callback_handler.on_step_end(args, self.state, self.control)
        self.random_states = random_states()
        ending = self.interrupts.received is not None or self.control.should_training_stop
        if self.control.should_save or self.interrupts.received is not None or self._save_failed:
            self._save(required=ending)
        if self.interrupts.received is None:
            self.show_completions_when_due()
            # what evaluation and callbacks drew, a run that resumes from this step will not have drawn
            set_random_states(self.random_states)
        if self.interrupts.received is None:
            return self.control.should_training_stop
        if self._saved is None or self._saved.name != f"checkpoint-{self.state.global_step}":
            self._save(required=True)
        return True

    def lr_scheduler_step(self) -> None:
        """One step of the schedule for each batch of experience, as TRL does."""
        with (
            warnings.catch_warnings()
        ):  # an update that was skipped leaves the optimizer a step behind; that is meant
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")
            self.lr_scheduler.step()

    def extra_metrics(self, rollout: Rollout) -> dict[str, float]:
        """What is logged beside PPO's metrics; override it to add your own measures of a rollout."""
        return {"memory/rss_mb": resident_mb(), "memory/peak_rss_mb": peak_resident_mb()}

    # The run

    def train(self, resume_from_checkpoint: str | Path | bool | None = None) -> None:
        """Run the loop to its end.

        Args:
            resume_from_checkpoint: a checkpoint's folder, or True for the newest whole one in `args.output_dir`. On a
                CPU the resumed run computes what the uninterrupted one would have, to the bit.

        Raises:
            CheckpointError: the checkpoint is not whole or not of this run, or the last one could not be written.
            RewardError, TrainingStopped: the run cannot go on; a checkpoint holds its last good state.
            SystemExit: SIGINT or SIGTERM came; the step was finished and a checkpoint written.
        """
        self.guard.in_a_row, self._save_failed, self._saved = 0, False, None
        if resume_from_checkpoint:
            self._saved = find_checkpoint(Path(self.args.output_dir), resume_from_checkpoint)
            state.read_state(self, self._saved)
        else:
            self.state = state.fresh_trainer_state(self)
        self.state.max_steps = self.args.num_total_batches
        self.state.num_train_epochs = self.args.total_episodes / len(self.train_dataset)
        self.state.compute_steps(self.args, self.state.max_steps)
        self.began, self.first_episode = time.perf_counter(), self.state.episode
        self.is_in_train = True
        try:
            self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
            # after the callbacks, which may draw: the run that wrote the checkpoint had drawn before
            if resume_from_checkpoint:
                set_random_states(self.random_states)
            with self.interrupts:
                self._run()
            self.control = self.callback_handler.on_train_end(self.args, self.state, self.control)
        finally:
            self.is_in_train = False
        if self.interrupts.received is not None:
            number, self.interrupts.received = self.interrupts.received, None
            raise SystemExit(128 + number)

    def _run(self) -> None:
        try:
            loop.run(self)
        except (RewardError, TrainingStopped, FloatingPointError) as error:
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            # a checkpoint of the last step stays as it is: updates of this step may have been made since
            path = folder if self._saved == folder and folder.is_dir() else self._save(required=True)
            raise type(error)(
                f"after step {self.state.global_step}: {error}\nThe last good state is in {path}; "
                "when the cause is mended, go on with train(resume_from_checkpoint=True)"
            ) from error

    # Saving

    def _save(self, required: bool) -> Path | None:
        """Write a checkpoint. One that fails in the middle of a run is tried again after the next step."""
        self.enter_phase("saving")
        folder, step = Path(self.args.output_dir), self.state.global_step
        try:
            path = save_checkpoint(
                folder, step, lambda target: state.write_state(self, target), self.args.save_total_limit
            )
        except CheckpointError as error:
            self._save_failed = True
            if required:
                raise
            warnings.warn(f"{error}; training goes on, and the next step tries again", stacklevel=2)
            return None
        self._save_failed, self._saved = False, path
        self.control = self.callback_handler.on_save(self.args, self.state, self.control)
        return path

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the policy (a PEFT policy's adapter), the tokenizer and the critic to `output_dir`."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        self.policy_model.save_pretrained(folder)
        self.processing_class.save_pretrained(folder)
        state.save_critic(self.value_model, folder / state.CRITIC)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
