"""The loop. It reads like the algorithm; what a line means is in the function or method that it calls."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fastrlhf.models.actor_critic import ActorCriticOutput, reference_logprobs
from fastrlhf.ppo.experience import Evaluation, Experience
from fastrlhf.ppo.rollout import Rollout

if TYPE_CHECKING:
    from fastrlhf.ppo.online import OnlineTrainer


def run(trainer: OnlineTrainer) -> None:
    """Train until the last step, or until a callback or a signal ends the run."""
    for prompts in trainer.prompt_batches():
        clock = Clock(trainer)
        trainer.begin_step()

        with clock.phase("rollout"):
            rollout = trainer.rollout(prompts)
        with clock.phase("reward"):
            scores = trainer.score(rollout)
        with clock.phase("evaluate"):
            ahead = forward_ahead(trainer, rollout)
            experience = evaluate(trainer, rollout, scores, ahead)
        with clock.phase("update"):
            stats = trainer.new_stats()
            for epoch in range(trainer.plan.epochs):
                for rows in trainer.minibatches(epoch):
                    update(trainer, experience, rows, stats, ahead)
                    ahead = None

        if trainer.end_step(experience, stats, clock.seconds):
            break


def forward_ahead(trainer: OnlineTrainer, rollout: Rollout) -> ActorCriticOutput | None:
    """The forward of the first update, made before it: values (and log-probabilities) are read off it too.

    None where that update is not one forward of all rows.
    """
    if not trainer.first_update_has_all_rows:
        return None
    trainer.optimizer.zero_grad(set_to_none=True)  # before activations take their room
    trainer.frozen_states.begin(rollout)
    return forward(trainer, rollout, slice(0, len(rollout.lengths)))


@torch.no_grad()
def evaluate(
    trainer: OnlineTrainer, rollout: Rollout, scores: Any, ahead: ActorCriticOutput | None = None
) -> Experience:
    """What policy, reference and critic say of the rollout, as far as it is needed; rewards and advantages."""
    args, needs = trainer.args, trainer.needs
    shape, device = rollout.response_ids.shape, rollout.response_ids.device
    logprobs, ref_logprobs, values = found = Evaluation(
        *(torch.zeros(shape, device=device) if needed else None for needed in needs)
    )
    reuses = trainer.reuses_rollout_logprobs and rollout.sampled_logprobs is not None
    if needs.logprobs and reuses:
        logprobs.copy_(torch.where(rollout.mask, rollout.sampled_logprobs, 0.0))
    trainer.frozen_states.begin(rollout)
    reference_states = trainer.reference_states.of(rollout)
    evaluates_policy = needs.logprobs and not reuses
    if ahead is not None:
        width = ahead.logprobs.shape[1]
        if evaluates_policy:
            logprobs[:, :width] = ahead.logprobs
        if needs.values:
            values[:, :width] = ahead.values
        needs, evaluates_policy = needs._replace(values=False), False
    if not (evaluates_policy or needs.ref_logprobs or needs.values):
        return trainer.make_experience(rollout, scores, found)
    for start in range(0, len(rollout.lengths), args.local_rollout_forward_batch_size):
        some = slice(start, start + args.local_rollout_forward_batch_size)
        with trainer.autocast():
            responses = trainer.frozen_states.enter(rollout.responses(some), some)
            width = responses.mask.shape[1]
            if evaluates_policy:
                output = trainer.model(responses, args.temperature)
                logprobs[some, :width] = output.logprobs
                if needs.values:
                    values[some, :width] = output.values
            elif needs.values:
                values[some, :width] = trainer.model.values(responses)
            if needs.ref_logprobs:
                with trainer.reference() as reference:
                    ref_logprobs[some, :width] = reference_logprobs(
                        reference,
                        responses,
                        args.temperature,
                        packing=args.packing,
                        shares_bottom=trainer.reference_shares_bottom,
                        hidden=reference_states.kept(some),
                    )
    return trainer.make_experience(rollout, scores, found)


def forward(trainer: OnlineTrainer, rollout: Rollout, rows: torch.Tensor | slice) -> ActorCriticOutput:
    """Policy and critic on rows of the rollout, differentiable."""
    responses = rollout.responses(rows, everywhere=trainer.counts_padding)
    with trainer.autocast():
        responses = trainer.frozen_states.enter(responses, rows)
        return trainer.model(responses, trainer.args.temperature)


def update(
    trainer: OnlineTrainer,
    experience: Experience,
    rows: torch.Tensor,
    stats: Any,
    ahead: ActorCriticOutput | None = None,
) -> None:
    """One optimizer update on the minibatch `rows`; `ahead` is their forward, if it was made before."""
    trainer.optimizer.zero_grad(set_to_none=True)
    add_gradients(trainer, experience, rows, stats, ahead)
    for loss in trainer.pretraining_losses(len(rows)):
        loss.backward()
    stats.end_minibatch(*trainer.optimizer_step(stats.minibatch_loss))


def add_gradients(
    trainer: OnlineTrainer,
    experience: Experience,
    rows: torch.Tensor,
    stats: Any,
    ahead: ActorCriticOutput | None = None,
) -> None:
    """The gradient of the minibatch `rows`, added up over micro-batches."""
    rollout, denominators = experience.rollout, trainer.denominators(experience, rows)
    for some in rows.split(trainer.args.per_device_train_batch_size):
        output = ahead or forward(trainer, rollout, some)
        loss = trainer.loss(output, experience, some, denominators)
        loss.loss.backward()
        stats.add(loss, output.entropy.detach(), rollout.response_ids.shape[1] * len(some))


class Clock:
    """Seconds of each phase of one step, told to the trainer's listeners as they begin."""

    def __init__(self, trainer: OnlineTrainer):
        self.trainer = trainer
        self.began = time.perf_counter()
        self._phases: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str):
        """Time a phase."""
        self.trainer.enter_phase(name)
        began = time.perf_counter()
        yield
        self._phases[name] = self._phases.get(name, 0.0) + time.perf_counter() - began

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by phase, and of the step so far."""
        return {**self._phases, "step": time.perf_counter() - self.began}
