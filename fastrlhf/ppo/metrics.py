"""What a step logs: TRL's metrics under TRL's names, then ours."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from fastrlhf.ppo.experience import Experience
from fastrlhf.ppo.stats import UpdateStats

if TYPE_CHECKING:
    from fastrlhf.ppo.trainer import PPOTrainer


def step_metrics(
    trainer: PPOTrainer, experience: Experience, stats: UpdateStats, seconds: dict[str, float]
) -> dict[str, float]:
    """The metrics of a finished step.

    Args:
        experience: what the step learned from.
        stats: of its updates.
        seconds: by phase, and of the step.
    """
    rollout, mask = experience.rollout, experience.rollout.mask
    penalty, score = experience.penalty.sum(dim=1).mean().item(), experience.scores.mean().item()
    tokens = int(rollout.lengths.sum())
    elapsed = time.perf_counter() - trainer.began
    is_end = (rollout.response_ids == trainer.processing_class.eos_token_id) & mask
    return {
        "eps": int((trainer.state.episode - trainer.first_episode) / elapsed),
        "objective/kl": experience.kl.sum(dim=1).mean().item(),
        "objective/entropy": torch.where(mask, -experience.logprobs, 0.0).sum(dim=1).mean().item(),
        "objective/non_score_reward": penalty,
        "objective/rlhf_reward": penalty + score,
        "objective/scores": score,
        **stats.metrics(),
        "val/num_eos_tokens": int(is_end.sum()),
        "lr": trainer.lr_scheduler.get_last_lr()[0],
        "episode": trainer.state.episode,
        "objective/kl_coef": trainer.kl_controller.kl_coef,
        "train/skipped_updates": trainer.guard.skipped,
        "response_length": tokens / len(rollout.lengths),
        "tokens_per_second": tokens / seconds["step"],
        "elapsed_s": elapsed,
        **{f"time/{phase}": value for phase, value in seconds.items()},
        **trainer.extra_metrics(rollout),
    }
