"""Before the first step: do the longest sequences that can come fit into the device's memory?

A run whose prompts are shuffled may meet them after hours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from fastrlhf.data.prompts import longest_prompt
from fastrlhf.generation.request import Request
from fastrlhf.generation.run import run
from fastrlhf.generation.settings import Settings
from fastrlhf.memory.adamw import AdamW
from fastrlhf.models.backbone import evaluation_mode
from fastrlhf.ppo import loop
from fastrlhf.ppo.rewards import model_scores
from fastrlhf.ppo.rollout import Rollout
from fastrlhf.trainers.randomness import random_states, set_random_states

if TYPE_CHECKING:
    from fastrlhf.ppo.trainer import PPOTrainer

MENDS = {
    "rollout": "local_rollout_forward_batch_size",
    "evaluation": "local_rollout_forward_batch_size",
    "update": "per_device_train_batch_size (and raise gradient_accumulation_steps)",
}


def try_longest(trainer: PPOTrainer) -> None:
    """Take the longest prompt and a response of full length, in every row, through what a step does: a rollout's cache
    and first token, reward models, an evaluation, and one micro-batch's gradient beside the optimizer's state.

    Nothing of it stays: no weight, gradient or random state changes. Nothing is tried on a CPU, whose memory has no
    bound of its own, and where `device_memory` bounds it in another way.

    Raises:
        torch.OutOfMemoryError: the message names the phase, the lengths and what to lower.
    """
    args = trainer.args
    if args.device.type == "cpu" or args.device_memory is not None or not args.try_longest_first:
        return
    prompt, states = longest_prompt(trainer.train_dataset), random_states()
    trainer.model.train()
    try:
        with _phase(trainer, "update", prompt):
            state = _state_to_come(trainer.optimizer, args.device)
        with _phase(trainer, "rollout", prompt):
            _first_token(trainer, prompt)
        with _phase(trainer, "evaluation", prompt):
            rollout = _longest_rollout(trainer, prompt)
            with torch.no_grad():
                for model in trainer.scorer.models:
                    model_scores(model, rollout, args.local_rollout_forward_batch_size, args.packing)
            scores = torch.zeros(len(rollout.lengths), device=args.device)
            ahead = loop.forward_ahead(trainer, rollout)
            experience = loop.evaluate(trainer, rollout, scores, ahead)
        with _phase(trainer, "update", prompt):
            rows = torch.arange(args.per_device_train_batch_size, device=args.device)
            loop.add_gradients(trainer, experience, rows, trainer.new_stats(), ahead)
            del state
    finally:
        trainer.optimizer.zero_grad(set_to_none=True)
        trainer.frozen_states.clear()
        trainer.reference_states.clear()
        set_random_states(states)


def _first_token(trainer: PPOTrainer, prompt: list[int]) -> None:
    """Makes the cache, which has room for full length from the start."""
    args = trainer.args
    of_all = Settings(args.response_length, temperature=args.temperature)
    requests = [Request(row, tuple(prompt), row, of_all) for row in range(args.local_batch_size)]
    with trainer.autocast(), evaluation_mode(trainer.policy_model):
        max_rows = args.local_rollout_forward_batch_size
        events = run(trainer.policy_model, requests, max_rows=max_rows, weights=args.rollout_weights)
        next(events)
        events.close()


def _longest_rollout(trainer: PPOTrainer, prompt: list[int]) -> Rollout:
    args = trainer.args
    rows, device = args.local_batch_size, args.device
    prompts = torch.tensor([prompt], device=device).expand(rows, -1)
    responses = prompts[:, :1].expand(-1, args.response_length)
    lengths = torch.full((rows,), args.response_length, device=device)
    return Rollout(prompts, torch.ones_like(prompts, dtype=torch.bool), responses, lengths)


def _state_to_come(optimizer: torch.optim.Optimizer, device: torch.device) -> torch.Tensor | None:
    """As much memory as Adam's state takes, where it is still to be made: two moments, and a master of bfloat16."""
    if optimizer.state or not isinstance(optimizer, (AdamW, torch.optim.Adam)):
        return None
    trained = [p for group in optimizer.param_groups for p in group["params"] if p.requires_grad]
    each = [p.numel() * (2 * max(4, p.element_size()) + 4 * (p.dtype == torch.bfloat16)) for p in trained]
    return torch.empty(sum(each), dtype=torch.uint8, device=device)


@contextmanager
def _phase(trainer: PPOTrainer, name: str, prompt: list[int]) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise torch.OutOfMemoryError(
            f"the {name} does not fit for the longest sequences that can come, {len(prompt)} tokens of a prompt and "
            f"response_length={trainer.args.response_length}: lower {MENDS[name]}, or set device_memory "
            f"(try_longest_first=False begins without trying). {error}"
        ) from error
