"""What is checked of the options that every online trainer has."""

from __future__ import annotations

from typing import Any

from fastrlhf.memory.sizes import parse_size


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
    if args.device_memory is None and args.offload_activations:
        raise ValueError("offload_activations=True needs the memory manager: set device_memory too")
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
