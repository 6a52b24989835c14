"""What the configurations of online trainers share: how a field is written, and how its value is checked."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import field
from typing import Any

from fastrlhf.memory.sizes import parse_size


def option(default: Any, help: str) -> Any:
    """A field of a configuration."""
    return field(default=default, metadata={"help": help})


@contextmanager
def settled(args: Any) -> Iterator[None]:
    """Before transformers' own `__post_init__`, which goes into the block: bfloat16 unless fp16, and keep_last."""
    if args.bf16 is None:
        args.bf16 = not args.fp16
    if args.keep_last is not None:
        if args.save_total_limit not in (None, args.keep_last):
            raise ValueError(
                f"keep_last is {args.keep_last} and save_total_limit {args.save_total_limit}: set one of the two"
            )
        args.save_total_limit = args.keep_last
    # the name is TRL's and ours to keep; transformers 5.23 has renamed its own
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`gradient_checkpointing", category=FutureWarning)
        yield


def check_ranges(args: Any, at_least: dict[str, float], above: dict[str, float]) -> None:
    """Raise ValueError for a value below its bound (None is within any)."""
    for name, low in at_least.items():
        value = getattr(args, name)
        if value is not None and not value >= low:
            raise ValueError(f"{name} is {value}, expected at least {low}")
    for name, low in above.items():
        value = getattr(args, name)
        if value is not None and not value > low:
            raise ValueError(f"{name} is {value}, expected more than {low}")


def check_one_of(args: Any, choices: dict[str, tuple]) -> None:
    """Raise ValueError for a value that is none of those that there are."""
    for name, allowed in choices.items():
        if getattr(args, name) not in allowed:
            raise ValueError(
                f"{name} is {getattr(args, name)!r}, expected one of {', '.join(map(str, allowed))}"
            )


def check_common(args: Any) -> None:
    """Raise ValueError where options that every online trainer has cannot be meant."""
    if args.fp16:
        raise ValueError("fp16=True needs loss scaling, which is not supported: use bf16=True, or neither")
    for name in ("frozen_states_bytes", "packed_weight_bytes"):
        parse_size(name, getattr(args, name))
    for name in ("device_memory", "host_memory"):
        if getattr(args, name) is not None:
            parse_size(name, getattr(args, name))
    if args.device_memory is None and (args.host_memory or args.offload_dir):
        raise ValueError("host_memory and offload_dir are for what leaves the device: set device_memory too")
    if args.trainable_layers is not None and (args.gradient_checkpointing_kwargs or {}).get("use_reentrant"):
        raise ValueError(
            "gradient_checkpointing_kwargs asks for use_reentrant, with which no gradient comes where a layer's "
            "input has none: leave it out with trainable_layers"
        )
    if args.reuse_rollout_logprobs and args.rollout_correction_cap is not None:
        raise ValueError(
            "rollout_correction_cap compares the trainer's log-probabilities with the generator's, and "
            "reuse_rollout_logprobs=True leaves nothing to compare: set one of the two"
        )
