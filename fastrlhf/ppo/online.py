"""A trainer that learns from its own samples: rollouts, guarded updates, the run from its begin to its end, saving.

What is learned from a rollout, and by which loss, is for the trainers made of it (`PPOTrainer`, `fastrlhf.grpo`).
"""

from __future__ import annotations

import itertools
import math
import time
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from fastrlhf.data.order import PromptOrder
from fastrlhf.memory.resident import peak_resident_mb, resident_mb
from fastrlhf.models.actor_critic import ActorCritic, ActorCriticOutput
from fastrlhf.models.backbone import is_peft
from fastrlhf.ppo import loop, state
from fastrlhf.ppo.batches import minibatch_order, numbered_batches
from fastrlhf.ppo.experience import Evaluation, Experience
from fastrlhf.ppo.rewards import RewardError
from fastrlhf.ppo.roles import HasRoles, reference_copy
from fastrlhf.ppo.rollout import Rollout
from fastrlhf.ppo.sampling import Samples
from fastrlhf.trainers.checkpoint import CheckpointError, find_checkpoint, save_checkpoint
from fastrlhf.trainers.guard import TrainingStopped, UpdateGuard
from fastrlhf.trainers.interrupt import Interrupts
from fastrlhf.trainers.randomness import random_states, set_random_states


class Plan(NamedTuple):
    """How a run goes: rollouts of `rows` responses, `num_generations` to a prompt, each learned from in `epochs` passes
    over minibatches of `minibatch_rows`; `steps` is what `max_steps` counts, `steps_per_rollout` of them a rollout."""

    rows: int
    num_generations: int
    epochs: int
    minibatch_rows: int
    steps: int
    steps_per_rollout: int

    @property
    def updates(self) -> int:
        """Optimizer updates of one rollout."""
        return self.epochs * (self.rows // self.minibatch_rows)


class Needs(NamedTuple):
    """What a rollout is evaluated for, before it is learned from."""

    logprobs: bool
    ref_logprobs: bool
    values: bool


class OnlineTrainer(Samples, HasRoles, Trainer):
    """The part of a trainer that has nothing to do with what is learned.

    A subclass gives the hooks below, and calls `set_up` at the end of its constructor.
    """

    plan: Plan
    needs: Needs
    pad_token_id: int
    stop_token_ids: tuple[int, ...]
    total_epochs: float
    shuffles_prompts = True
    reference_changes = False
    counts_padding = False

    # What a subclass gives

    @abstractmethod
    def score(self, rollout: Rollout) -> Any:
        """What the rewards say of a rollout."""

    @abstractmethod
    def make_experience(self, rollout: Rollout, scores: Any, found: Evaluation) -> Experience:
        """What is learned from a rollout: its rewards made into advantages."""

    @abstractmethod
    def denominators(self, experience: Experience, rows: torch.Tensor) -> Any:
        """What the sums of a minibatch's loss are divided by, whatever micro-batch they are of."""

    @abstractmethod
    def loss(
        self, output: ActorCriticOutput, experience: Experience, rows: torch.Tensor, denominators: Any
    ) -> Any:
        """The loss of a micro-batch (`loss`, and what its statistics are made of)."""

    @abstractmethod
    def new_stats(self) -> Any:
        """What gathers the statistics of a step's updates."""

    @abstractmethod
    def conclude_step(self, experience: Experience, stats: Any, seconds: dict[str, float]) -> None:
        """Count the step, log, and let the callbacks say what is due."""

    @abstractmethod
    def carried(self) -> dict[str, Any]:
        """What else a checkpoint keeps of the run's progress, as JSON."""

    @abstractmethod
    def carry(self, reached: dict[str, Any]) -> None:
        """Take up what `carried` gave."""

    def before_first_step(self) -> None:
        """What is to be found out before the run's first step, whatever was resumed."""

    def pretraining_losses(self, rows: int) -> Iterator[torch.Tensor]:
        """Losses beside that of the experience, of so many rows a minibatch, each to be added to the gradient."""
        yield from ()

    def set_up(
        self,
        model: nn.Module,
        ref_model: nn.Module | None,
        value_model: nn.Module | None,
        *,
        detach_value: bool = True,
        entropy_grad: bool,
    ) -> None:
        """Put the models in their places, and make what trains them."""
        args = self.args
        self.policy_model, self.value_model, self.ref_model = model, value_model, ref_model
        if self.needs.ref_logprobs and ref_model is None and not is_peft(model):
            self.ref_model = reference_copy(model, args)
        self.model = ActorCritic(
            model, value_model, detach_value=detach_value, packing=args.packing, entropy_grad=entropy_grad
        )
        self.model_wrapped = self.model
        self.place_models()
        self.share_forwards()
        self.create_optimizer_and_scheduler(num_training_steps=self.plan.steps)
        self.offload_models()
        handler = self.callback_handler
        handler.model, handler.optimizer, handler.lr_scheduler = self.model, self.optimizer, self.lr_scheduler
        self.state = state.fresh_trainer_state(self)
        self.guard = UpdateGuard()
        self.interrupts = Interrupts()
        self.phase_listeners: list[Callable[[str], None]] = []
        self.update_numbers = itertools.count()
        self.random_states = random_states()
        self._save_failed = False
        self._saved: Path | None = None

    # Data

    def get_train_dataloader(self) -> DataLoader:
        """Batches of prompts without end, in the order that the seed decides."""
        prompts = self.plan.rows // self.plan.num_generations
        order = PromptOrder(len(self.train_dataset), prompts, self.data_seed, shuffle=self.shuffles_prompts)
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

    @property
    def rollouts_done(self) -> int:
        """How many rollouts the run has learned from."""
        return self.state.episode // self.plan.rows

    def prompt_batches(self) -> Iterator[dict[str, Any]]:
        """The batches of the rollouts that are still to do, skipping those that a resumed run has done."""
        to_do = math.ceil((self.plan.steps - self.state.global_step) / self.plan.steps_per_rollout)
        numbers = range(self.rollouts_done, self.rollouts_done + to_do)
        return numbered_batches(self.get_train_dataloader(), numbers, self.data_seed)

    def minibatches(self, epoch: int) -> Iterator[torch.Tensor]:
        """Rows of each minibatch of one epoch over a batch, on the device."""
        seed = self.sampling_seed * 1_000_003 + self.rollouts_done
        rows = minibatch_order(self.plan.rows, epoch, seed)
        yield from rows.to(self.args.device, non_blocking=True).split(self.plan.minibatch_rows)

    # A step

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
        self.update_numbers = itertools.count(self.rollouts_done * self.plan.updates)
        self.model.train()
        self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)

    def end_step(self, experience: Experience, stats: Any, seconds: dict[str, float]) -> bool:
        """Log, schedule, save and show completions as they are due. Returns whether the run ends here."""
        self.conclude_step(experience, stats, seconds)
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
        """One step of the learning rate's schedule."""
        with (
            warnings.catch_warnings()
        ):  # an update that was skipped leaves the optimizer a step behind; that is meant
            warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*before.*optimizer.step")
            self.lr_scheduler.step()

    def extra_metrics(self, rollout: Rollout) -> dict[str, float]:
        """What is logged beside the algorithm's metrics; override it to add your own measures of a rollout."""
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
        self.state.max_steps = self.plan.steps
        self.state.num_train_epochs = self.total_epochs
        self.state.compute_steps(self.args, self.state.max_steps)
        self.began, self.first_episode = time.perf_counter(), self.state.episode
        self.is_in_train = True
        try:
            self.control = self.callback_handler.on_train_begin(self.args, self.state, self.control)
            # after the callbacks, which may draw: the run that wrote the checkpoint had drawn before
            if resume_from_checkpoint:
                set_random_states(self.random_states)
            self.before_first_step()
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
        """Write the policy (a PEFT policy's adapter), the tokenizer and any critic to `output_dir`."""
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        state.save_trained(self.policy_model, folder)
        self.processing_class.save_pretrained(folder)
        if self.value_model is not None:
            state.save_critic(self.value_model, folder / state.CRITIC)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)
