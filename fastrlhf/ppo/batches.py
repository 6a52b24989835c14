"""How a batch divides into minibatches and micro-batches, and how many there are."""

from __future__ import annotations

import math

from accelerate import PartialState

from fastrlhf.ppo.config import PPOConfig


def resolve_batch_sizes(args: PPOConfig, prompts: int) -> None:
    """Fill in the derived sizes of `args` for a dataset of `prompts` rows.

    Raises:
        ValueError: no prompts, more processes than one, or sizes that do not divide; the message gives them.
    """
    if prompts == 0:
        raise ValueError("train_dataset is empty: there is no prompt to learn from")
    processes = PartialState().num_processes
    if processes > 1:
        raise ValueError(f"{processes} processes: training on more than one is not supported yet")
    args.world_size = processes
    if args.total_episodes is None:
        args.total_episodes = int(args.num_train_epochs * prompts)
    args.local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    args.micro_batch_size = args.per_device_train_batch_size * args.world_size
    args.batch_size = args.local_batch_size * args.world_size
    if args.batch_size > prompts:
        raise ValueError(
            f"train_dataset has {prompts} rows, fewer than one batch of {args.batch_size} (per_device_train_batch_size="
            f"{args.per_device_train_batch_size} x gradient_accumulation_steps={args.gradient_accumulation_steps}): "
            "make the batch smaller or add prompts"
        )
    if args.local_batch_size % args.num_mini_batches:
        raise ValueError(
            f"num_mini_batches is {args.num_mini_batches}, which does not divide the batch of {args.local_batch_size} "
            f"(per_device_train_batch_size={args.per_device_train_batch_size} x gradient_accumulation_steps="
            f"{args.gradient_accumulation_steps})"
        )
    args.local_mini_batch_size = args.local_batch_size // args.num_mini_batches
    args.mini_batch_size = args.batch_size // args.num_mini_batches
    args.num_total_batches = math.ceil(args.total_episodes / args.batch_size)
