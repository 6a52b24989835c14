"""What the configurations of all trainers on transformers' loop share: TRL's defaults, our options, what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from transformers import TrainingArguments

from fastrlhf.data.validate import check_on_bad_rows
from fastrlhf.memory.sizes import parse_size


def option(default: Any, help: str) -> Any:
    """A field of a configuration with its help."""
    return field(default=default, metadata={"help": help})


# Options of transformers that would be ignored, or would go past the fused loss: their only value, and why.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "fp16": ((False,), "needs loss scaling, which is not supported: use bf16=True, or neither"),
    "use_liger_kernel": ((False,), "replaces the operations that accelerate=True brings: leave it out"),
    "torch_compile": ((False,), "compiles a forward that the fused loss does not call: leave it out"),
    "deepspeed": ((None,), "is not supported: leave it out"),
    "fsdp": ((None, "", [], False), "is not supported: leave it out"),
    "fsdp_config": ((None, {}), "is not supported: leave it out"),
    "parallelism_config": ((None,), "is not supported: leave it out"),
    "label_smoothing_factor": ((0.0,), "needs whole logits, which are never computed: leave it out"),
    "auto_find_batch_size": ((False,), "would change the batches of a run that resumes: set the batch size"),
}


@dataclass
class TrainerConfig(TrainingArguments):
    """`transformers.TrainingArguments` with the defaults of `trl==1.16.0`'s trainers and the options that are ours.

    Raises:
        ValueError: a value outside its range, or an option that is not supported; the message names the field, its
            value and the mend.
    """

    # As in TRL
    logging_steps: float = option(10, "Log every so many steps, or, below 1, this share of all steps.")
    gradient_checkpointing: bool = option(True, "Compute activations again in the backward to save memory.")
    bf16: bool | None = option(
        None, "bfloat16 autocast on a GPU; True unless fp16. A CPU computes in float32."
    )

    # fastrlhf's own
    accelerate: bool = option(True, "Make the model of fastrlhf's operations, in place.")
    unpadded: bool | None = option(
        None,
        "Compute on real tokens only, all sequences of a batch in one row; None: where the attention is ours.",
    )
    packed_weight_bytes: str = option(
        "0",
        "How much of the weights stays packed for the CPU's fastest matrix products, in copies, in this process; "
        "products with the others pack each time.",
    )
    on_bad_rows: str = option(
        "stop",
        "Rows of a dataset that cannot be used: 'stop' names the first ones and raises, 'skip' leaves them out with a "
        "warning.",
    )
    keep_last: int | None = option(None, "How many checkpoints stay; the same as save_total_limit.")
    max_skipped_updates: int = option(
        3, "Non-finite updates in a row after which the run stops with a checkpoint."
    )

    def __post_init__(self):
        refuse(self, REFUSED)  # before transformers imports what an option needs
        with settled(self):
            super().__post_init__()
        check_on_bad_rows(self.on_bad_rows)
        check_at_least(self, {"keep_last": 1, "max_skipped_updates": 1})
        parse_size("packed_weight_bytes", self.packed_weight_bytes)


@contextmanager
def settled(args: TrainingArguments) -> Iterator[None]:
    """Around transformers' own `__post_init__`: before it, bfloat16 unless fp16, and keep_last."""
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


def take_back_bfloat16(args: TrainingArguments) -> None:
    """On a CPU, where bfloat16 would be slower, compute in float32 with a notice."""
    if args.bf16 and args.device.type == "cpu":
        warnings.warn("bf16=True on a CPU computes in float32, where bfloat16 would be slower", stacklevel=4)
        args.bf16 = False


def refuse(args: TrainingArguments, refused: Mapping[str, tuple[tuple[Any, ...], str]]) -> None:
    """Raise ValueError where a field has another value than those that mean nothing.

    Args:
        refused: by field, the values that it may have, and why no other; a field that this version of transformers does
            not have is passed over.
    """
    for name, (allowed, why) in refused.items():
        value = getattr(args, name, allowed[0])
        if not any(value is one or value == one for one in allowed):
            raise ValueError(f"{name} is {value!r}, which {why}")


def check_at_least(args: TrainingArguments, at_least: Mapping[str, float]) -> None:
    """Raise ValueError where a field that is set lies below its lowest value."""
    for name, low in at_least.items():
        value = getattr(args, name)
        if value is not None and not value >= low:
            raise ValueError(f"{name} is {value}, expected at least {low}")


def check_above(args: TrainingArguments, above: Mapping[str, float]) -> None:
    """Raise ValueError where a field that is set is not above its bound."""
    for name, low in above.items():
        value = getattr(args, name)
        if value is not None and not value > low:
            raise ValueError(f"{name} is {value}, expected more than {low}")


def check_one_of(args: TrainingArguments, choices: Mapping[str, tuple[Any, ...]]) -> None:
    """Raise ValueError where a field has none of its values."""
    for name, allowed in choices.items():
        value = getattr(args, name)
        if value not in allowed:
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(str, allowed))}")
