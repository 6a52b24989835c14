"""The PPO loop. It reads like the algorithm; what a line means is in the function that it calls."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fastrlhf.kernels import ppo_loss
from fastrlhf.models.actor_critic import ActorCriticOutput, reference_logprobs
from fastrlhf.ppo.experience import Experience, make_experience
from fastrlhf.ppo.rollout import Rollout
from fastrlhf.ppo.stats import UpdateStats

if TYPE_CHECKING:
    from fastrlhf.ppo.trainer import PPOTrainer


def run(trainer: PPOTrainer) -> None:
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
            stats = UpdateStats(padded=trainer.args.padded_averages)
            for epoch in range(trainer.args.num_ppo_epochs):
                for rows in trainer.minibatches(epoch):
                    update(trainer, experience, rows, stats, ahead)
                    ahead = None

        if trainer.end_step(experience, stats, clock.seconds):
            break


def forward_ahead(trainer: PPOTrainer, rollout: Rollout) -> ActorCriticOutput | None:
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
    trainer: PPOTrainer, rollout: Rollout, scores: torch.Tensor, ahead: ActorCriticOutput | None = None
) -> Experience:
    """Log-probabilities and values of the rollout under policy, reference and critic; rewards and advantages."""
    args, rows = trainer.args, len(rollout.lengths)
    shape, device = rollout.response_ids.shape, rollout.response_ids.device
    logprobs, ref_logprobs, values = (torch.zeros(shape, device=device) for _ in range(3))
    reuses = trainer.reuses_rollout_logprobs and rollout.sampled_logprobs is not None
    if reuses:
        logprobs = torch.where(rollout.mask, rollout.sampled_logprobs, 0.0)
    trainer.frozen_states.begin(rollout)
    reference_states = trainer.reference_states.of(rollout)
    for start in range(0, rows, args.local_rollout_forward_batch_size):
        some = slice(start, start + args.local_rollout_forward_batch_size)
        with trainer.autocast():
            responses = trainer.frozen_states.enter(rollout.responses(some), some)
            width = responses.mask.shape[1]
            with trainer.reference() as reference:
                ref_logprobs[some, :width] = reference_logprobs(
                    reference,
                    responses,
                    args.temperature,
                    packing=args.packing,
                    shares_bottom=trainer.reference_shares_bottom,
                    hidden=reference_states.kept(some),
                )
            if ahead is not None:
                continue
            if reuses:
                values[some, :width] = trainer.model.values(responses)
            else:
                output = trainer.model(responses, args.temperature)
                logprobs[some, :width], values[some, :width] = output.logprobs, output.values
    if ahead is not None:
        width = ahead.values.shape[1]
        values[:, :width] = ahead.values
        if not reuses:
            logprobs[:, :width] = ahead.logprobs
    return make_experience(
        rollout,
        scores,
        logprobs,
        ref_logprobs,
        values,
        kl_coef=trainer.kl_controller.kl_coef,
        kl_estimator=args.kl_estimator,
        reward_position=args.reward_position,
        whiten_rewards=args.whiten_rewards,
        gamma=args.gamma,
        lam=args.lam,
        correction_cap=args.rollout_correction_cap,
    )


def forward(trainer: PPOTrainer, rollout: Rollout, rows: torch.Tensor | slice) -> ActorCriticOutput:
    """Policy and critic on rows of the rollout, differentiable."""
    responses = rollout.responses(rows, everywhere=trainer.args.padded_averages)
    with trainer.autocast():
        responses = trainer.frozen_states.enter(responses, rows)
        return trainer.model(responses, trainer.args.temperature)


def update(
    trainer: PPOTrainer,
    experience: Experience,
    rows: torch.Tensor,
    stats: UpdateStats,
    ahead: ActorCriticOutput | None = None,
) -> None:
    """One optimizer update on the minibatch `rows`; `ahead` is their forward, if it was made before."""
    trainer.optimizer.zero_grad(set_to_none=True)
    add_gradients(trainer, experience, rows, stats, ahead)
    stats.end_minibatch(*trainer.optimizer_step(stats.minibatch_loss))


def add_gradients(
    trainer: PPOTrainer,
    experience: Experience,
    rows: torch.Tensor,
    stats: UpdateStats,
    ahead: ActorCriticOutput | None = None,
) -> None:
    """The gradient of the minibatch `rows`, added up over micro-batches."""
    args, rollout = trainer.args, experience.rollout
    mask, state_mask = rollout.mask, rollout.state_mask
    denominator, value_denominator = mask[rows].sum(), state_mask[rows].sum()
    for some in rows.split(args.per_device_train_batch_size):
        output = ahead or forward(trainer, rollout, some)
        columns = slice(output.logprobs.shape[1])
        loss = ppo_loss(
            output.logprobs,
            experience.logprobs[some, columns],
            experience.advantages[some, columns],
            mask[some, columns],
            values=output.values,
            old_values=experience.values[some, columns],
            returns=experience.returns[some, columns],
            value_mask=state_mask[some, columns],
            entropy=output.entropy,
            weights=None if experience.weights is None else experience.weights[some, columns],
            denominator=denominator,
            value_denominator=value_denominator,
            cliprange=args.cliprange,
            cliprange_high=args.cliprange_high,
            dual_clip=args.dual_clip,
            log_ratio_clamp=args.log_ratio_clamp,
            cliprange_value=args.cliprange_value,
            vf_coef=args.vf_coef,
            entropy_coef=args.entropy_coef,
        )
        loss.loss.backward()
        stats.add(loss, output.entropy.detach(), experience.logprobs.shape[1] * len(some))


class Clock:
    """Seconds of each phase of one step, told to the trainer's listeners as they begin."""

    def __init__(self, trainer: PPOTrainer):
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
