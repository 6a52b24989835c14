"""What the configurations of all trainers on transformers' loop share: TRL's defaults, our options, what is refused."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from transformers import TrainingArguments

from fastrlhf.data.validate import check_on_bad_rows
from fastrlhf.memory.sizes import parse_size
from fastrlhf.models.backbone import base_model


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
    "activation_offloading": (
        (False,),
        "is not supported: gradient_checkpointing=True saves the same memory",
    ),
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

    # The model
    model_init_kwargs: dict[str, Any] | str | None = option(
        None, "For from_pretrained, where the model is a name or path."
    )
    trust_remote_code: bool = option(False, "Run code that comes with a model or tokenizer.")

    # The data
    dataset_num_proc: int | None = option(None, "Processes that tokenise.")
    max_length: int | None = option(1024, "Longest sequence, in tokens; None: any.")
    pad_to_multiple_of: int | str | None = option(
        "auto", "The tokens of a batch's rows are filled up to a multiple of it; 'auto': they are not."
    )
    pad_token: str | None = option(None, "The token that fills padding; the tokenizer's if None.")

    # Training
    activation_offloading: bool = option(False, "Not supported.")

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

    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, "model_init_kwargs"]  # noqa: RUF012

    def __post_init__(self):
        refuse(self, REFUSED)  # before transformers imports what an option needs
        with settled(self):
            super().__post_init__()
        if isinstance(self.pad_to_multiple_of, str):  # as a command line gives it
            words = {"auto": None, "none": None, "null": None}
            text = self.pad_to_multiple_of.lower()
            self.pad_to_multiple_of = words[text] if text in words else int(text)
        check_on_bad_rows(self.on_bad_rows)
        lowest = {"keep_last": 1, "max_skipped_updates": 1, "pad_to_multiple_of": 1, "dataset_num_proc": 1}
        check_at_least(self, lowest | {"max_length": 2})
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


def as_config(
    config: type[TrainerConfig], args: TrainingArguments | None, model: str | nn.Module, suffix: str
) -> TrainerConfig:
    """The configuration, made of transformers' arguments or of nothing where that is what was passed.

    Args:
        config: its class.
        args, model: the trainer's arguments.
        suffix: of the output folder's name where there are no arguments.

    Raises:
        TypeError: other arguments.
    """
    if isinstance(args, config):
        return args
    if args is None:
        name = model if isinstance(model, str) else getattr(base_model(model).config, "_name_or_path", "")
        return config(f"{name.rstrip('/').split('/')[-1] or 'model'}-{suffix}")
    if isinstance(args, TrainingArguments) and not isinstance(args, TrainerConfig):
        return config(**(args.to_dict() | {"hub_token": args.hub_token}))
    raise TypeError(f"args is a {type(args).__name__}, expected {config.__name__}")


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


def check_arguments(given: Mapping[str, Any], refused: Mapping[str, str]) -> None:
    """Raise ValueError where an argument of a trainer is given that is refused, or there is no dataset to train on.

    Args:
        given: the trainer's arguments.
        refused: why, by the argument's name.
    """
    for name, why in refused.items():
        if given[name] is not None:
            raise ValueError(f"{name} {why}")
    if given["train_dataset"] is None:
        raise ValueError("train_dataset is None: there is nothing to learn from")


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
