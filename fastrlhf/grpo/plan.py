"""How a run of groups goes, as its configuration says."""

from __future__ import annotations

import math
from typing import Any

from fastrlhf.grpo.config import GroupConfig
from fastrlhf.ppo.online import Plan


def sampling_settings(args: GroupConfig) -> dict[str, Any]:
    """Settings of the generator, its stop tokens aside."""
    return {
        "max_new_tokens": args.max_completion_length,
        "temperature": args.temperature,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "min_p": args.min_p or 0.0,
        "repetition_penalty": args.repetition_penalty,
        **(args.generation_kwargs or {}),
    }


def make_plan(args: GroupConfig, prompts: int) -> Plan:
    """How the run goes over so many prompts.

    Raises:
        ValueError: fewer prompts than a rollout has.
    """
    of_rollout = args.generation_batch_size // args.num_generations
    if prompts < of_rollout:
        raise ValueError(
            f"train_dataset has {prompts} rows, fewer than the {of_rollout} of one rollout (generation_batch_size="
            f"{args.generation_batch_size}, num_generations={args.num_generations}): make it smaller or add prompts"
        )
    minibatch = args.per_device_train_batch_size * args.gradient_accumulation_steps
    updates = args.num_iterations * (args.generation_batch_size // minibatch)
    steps = args.max_steps
    if steps <= 0:
        steps = math.ceil(args.num_train_epochs * (prompts // of_rollout) * updates)
    return Plan(
        rows=args.generation_batch_size,
        num_generations=args.num_generations,
        epochs=args.num_iterations,
        minibatch_rows=minibatch,
        steps=steps,
        steps_per_rollout=updates,
    )
