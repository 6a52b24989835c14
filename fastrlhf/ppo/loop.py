"""The loop. It reads like the algorithm; what a line means is in the function or method that it calls."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fastrlhf.models.actor_critic import reference_logprobs
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
            experience = evaluate(trainer, rollout, scores)
        with clock.phase("update"):
            stats = trainer.new_stats()
            for epoch in range(trainer.plan.epochs):
                for rows in trainer.minibatches(epoch):
                    update(trainer, experience, rows, stats)

        if trainer.end_step(experience, stats, clock.seconds):
            break


@torch.no_grad()
def evaluate(trainer: OnlineTrainer, rollout: Rollout, scores: Any) -> Experience:
    """What policy, reference and critic say of the rollout, as far as it is needed; rewards and advantages."""
    args, needs = trainer.args, trainer.needs
    shape, device = rollout.response_ids.shape, rollout.response_ids.device
    logprobs, ref_logprobs, values = found = Evaluation(
        *(torch.zeros(shape, device=device) if needed else None for needed in needs)
    )
    reuses = trainer.reuses_rollout_logprobs and rollout.sampled_logprobs is not None
    if needs.logprobs and reuses:
        logprobs.copy_(torch.where(rollout.mask, rollout.sampled_logprobs, 0.0))
    trainer.frozen_states.begin()
    evaluates_policy = needs.logprobs and not reuses
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
                    )
    return trainer.make_experience(rollout, scores, found)


def update(trainer: OnlineTrainer, experience: Experience, rows: torch.Tensor, stats: Any) -> None:
    """One optimizer update on the minibatch `rows`, its gradient added up over micro-batches."""
    args, rollout = trainer.args, experience.rollout
    denominators = trainer.denominators(experience, rows)
    trainer.optimizer.zero_grad(set_to_none=True)
    for some in rows.split(args.per_device_train_batch_size):
        responses = rollout.responses(some, everywhere=trainer.counts_padding)
        with trainer.autocast():
            responses = trainer.frozen_states.enter(responses, some)
            output = trainer.model(responses, args.temperature)
        loss = trainer.loss(output, experience, some, denominators)
        loss.loss.backward()
        stats.add(loss, output.entropy.detach(), rollout.response_ids.shape[1] * len(some))
    for loss in trainer.pretraining_losses(len(rows)):
        loss.backward()
    stats.end_minibatch(*trainer.optimizer_step(stats.minibatch_loss))


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
