"""Batches: their sizes, the one that each step sees, and the order of rows within it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from accelerate import PartialState

from fastrlhf.data.order import PromptOrder
from fastrlhf.ppo.config import PPOConfig
from fastrlhf.trainers.randomness import seeded_generators


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
        args.total_episodes = int(args.num_train_epochs * prompts * args.num_generations)
    args.local_batch_size = args.per_device_train_batch_size * args.gradient_accumulation_steps
    args.micro_batch_size = args.per_device_train_batch_size * args.world_size
    args.batch_size = args.local_batch_size * args.world_size
    if args.batch_size % args.num_generations:
        raise ValueError(
            f"num_generations is {args.num_generations}, which does not divide the batch of {args.batch_size} "
            f"(per_device_train_batch_size={args.per_device_train_batch_size} x gradient_accumulation_steps="
            f"{args.gradient_accumulation_steps})"
        )
    if args.batch_size > prompts * args.num_generations:
        raise ValueError(
            f"train_dataset has {prompts} rows, fewer than one batch of {args.batch_size // args.num_generations} "
            f"(per_device_train_batch_size={args.per_device_train_batch_size} x gradient_accumulation_steps="
            f"{args.gradient_accumulation_steps}, for num_generations={args.num_generations}): make the batch smaller "
            "or add prompts"
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


def numbered_batches(loader: Any, numbers: range, seed: int) -> Iterator[Any]:
    """The batches with these numbers, from a loader that is read again from its beginning when it ends.

    Each is drawn with global generators that its number decides: a loader that shuffles, or a collator that draws, does
    after a resumption what it would have done, and leaves the generators of rewards and callbacks alone.
    """
    sampler = getattr(loader, "batch_sampler", None)
    in_order = isinstance(sampler, PromptOrder)
    if in_order:
        sampler.first_batch = numbers.start
    stream = _repeat(loader)
    for number in range(numbers.start if in_order else 0, numbers.stop):
        with seeded_generators(seed * 1_000_003 + number):
            batch = next(stream)
        if number in numbers:
            yield batch


def minibatch_order(rows: int, epoch: int, seed: int) -> torch.Tensor:
    """`[rows]`: as they come in the first epoch over a batch, shuffled in the others.

    A batch's prompts are in random order already. Left in it, the first minibatch's forward is the one that gave the
    old log-probabilities, to the bit, where the two are cut into the same parts.
    """
    if epoch == 0:
        return torch.arange(rows)
    generator = torch.Generator().manual_seed((seed * 1_009 + epoch) % 2**63)
    return torch.randperm(rows, generator=generator)


def _repeat(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader
