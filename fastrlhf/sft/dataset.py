"""A dataset of rows, made into one of tokens and labels, cut and packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset

from fastrlhf.data.packing import pack
from fastrlhf.data.rows import (
    MESSAGES,
    PREFERENCE,
    PREFERENCE_TOKENS,
    PROMPT,
    PROMPT_COMPLETION,
    TEXT,
    TOKENS,
)
from fastrlhf.data.tokenize import (
    IGNORED,
    masked_labels,
    messages_tokens,
    prompt_completion_tokens,
    text_tokens,
)
from fastrlhf.data.validate import DataError
from fastrlhf.sft.config import SFTConfig
from fastrlhf.trainers.dataset import checked, kind_of_columns, mapped

COLUMNS = ("input_ids", "labels")


def kind_of_dataset(dataset: Dataset, args: SFTConfig, name: str) -> str:
    """The kind of a dataset's rows.

    Raises:
        DataError: one that has nothing to imitate, or none that is known.
    """
    kind = kind_of_columns(dataset, name, args.dataset_text_field)
    if kind in (PREFERENCE, PREFERENCE_TOKENS, PROMPT):
        raise DataError(
            f"{name} has rows of the kind {kind}, expected texts, messages, or prompts with completions"
        )
    return kind


def prepare(
    dataset: Dataset,
    tokenizer: Any,
    args: SFTConfig,
    *,
    packing: bool,
    completion_only: bool,
    name: str,
    formatting_func: Callable[[dict[str, Any]], str] | None = None,
) -> Dataset:
    """`input_ids` and `labels` (and `seq_lengths`, if packed) of a dataset.

    Args:
        packing: whether its rows are packed.
        completion_only: whether of prompts with completions the completions alone count.
        name: what messages call it.
        formatting_func: makes a text of each row first.

    Raises:
        DataError: rows cannot be used, and `args.on_bad_rows` says to stop, or none can.
    """
    if formatting_func is not None and "input_ids" not in dataset.column_names:
        texts = [formatting_func(row) for row in dataset]
        dataset = Dataset.from_dict({args.dataset_text_field: texts})
    kind = kind_of_dataset(dataset, args, name)
    dataset = checked(dataset, kind, name, args.on_bad_rows, args.dataset_text_field)
    kept = slice(None) if packing or args.max_length is None else _kept(args)  # packing cuts to length itself

    def row_tokens(row: Mapping[str, Any]) -> dict[str, Any]:
        tokens = _tokens(row, kind, tokenizer, args, completion_only)
        return {name: tokens.get(name, tokens["input_ids"])[kept] for name in COLUMNS}

    dataset = mapped(dataset, row_tokens, {name: [] for name in COLUMNS}, name, args)
    if args.shuffle_dataset:
        dataset = dataset.shuffle(seed=args.seed)
    if packing:
        dataset = Dataset.from_dict(pack(dataset.to_dict(), args.max_length, args.packing_strategy))
        dataset = dataset.shuffle(seed=args.seed) if args.shuffle_dataset else dataset
    return _with_targets(dataset, name)


def check_labels(dataset: Dataset, name: str) -> None:
    """Raise DataError where a dataset that is taken as it is has masks that nobody would look at."""
    masks = {"completion_mask", "assistant_masks"} & set(dataset.column_names)
    if masks and "labels" not in dataset.column_names:
        raise DataError(
            f"{name} has {', '.join(sorted(masks))} and no labels, and skip_prepare_dataset=True makes none: every "
            "token would count; add labels, or leave skip_prepare_dataset out"
        )


def _tokens(
    row: Mapping[str, Any], kind: str, tokenizer: Any, args: SFTConfig, completion_only: bool
) -> dict[str, list[int]]:
    if kind == TEXT:
        return text_tokens(tokenizer, row[args.dataset_text_field])
    if kind == MESSAGES:
        return messages_tokens(tokenizer, row, assistant_only=args.assistant_only_loss)
    if kind == PROMPT_COMPLETION:
        return prompt_completion_tokens(
            tokenizer, row, completion_only=completion_only, assistant_only=args.assistant_only_loss
        )
    assert kind == TOKENS
    if "labels" in row:
        return {name: row[name] for name in COLUMNS}
    masks = [row["completion_mask"]] if completion_only and "completion_mask" in row else []
    masks += [row["assistant_masks"]] if "assistant_masks" in row else []
    return {"input_ids": row["input_ids"], "labels": masked_labels(row["input_ids"], *masks)}


def _kept(args: SFTConfig) -> slice:
    return slice(args.max_length) if args.truncation_mode == "keep_start" else slice(-args.max_length, None)


def _with_targets(dataset: Dataset, name: str) -> Dataset:
    """The rows in which a token counts: a prompt that fills max_length leaves none."""
    counts, beyond_first = [], False
    for labels in dataset["labels"]:
        counts.append(any(label != IGNORED for label in labels))
        beyond_first |= any(label != IGNORED for label in labels[1:])
    if not beyond_first:
        raise DataError(f"{name} has no row in which a token counts: raise max_length, or look at its labels")
    return dataset if all(counts) else dataset.select([at for at, count in enumerate(counts) if count])
