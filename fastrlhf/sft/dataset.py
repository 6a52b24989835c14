"""A dataset of rows, made into one of tokens and labels, cut and packed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset, IterableDataset

from fastrlhf.data.packing import pack
from fastrlhf.data.rows import (
    MESSAGES,
    PREFERENCE,
    PROMPT,
    PROMPT_COMPLETION,
    TEXT,
    TOKENS,
    Fault,
    fault_of,
    kind_of,
)
from fastrlhf.data.tokenize import (
    IGNORED,
    masked_labels,
    messages_tokens,
    prompt_completion_tokens,
    text_tokens,
)
from fastrlhf.data.validate import BadRows, DataError
from fastrlhf.sft.config import SFTConfig

COLUMNS = ("input_ids", "labels")
FAULT = "fault"


def as_dataset(rows: Any, name: str) -> Dataset:
    """A dataset of what was passed as the argument `name`: a `Dataset`, or a list of rows.

    Raises:
        TypeError, DataError: neither, or there is no row.
    """
    if isinstance(rows, IterableDataset):
        raise TypeError(
            f"{name} is an IterableDataset, which is not supported: pass a Dataset, or rows in a list"
        )
    if isinstance(rows, (list, tuple)):
        rows = Dataset.from_list(list(rows)) if rows else Dataset.from_dict({})
    if not isinstance(rows, Dataset):
        raise TypeError(f"{name} is a {type(rows).__name__}, expected a datasets.Dataset or a list of rows")
    if len(rows) == 0:
        raise DataError(f"{name} has no row")
    return rows


def kind_of_dataset(dataset: Dataset, args: SFTConfig, name: str) -> str:
    """The kind of a dataset's rows.

    Raises:
        DataError: one that has nothing to imitate, or none that is known.
    """
    try:
        kind = kind_of(dict.fromkeys(dataset.column_names), args.dataset_text_field)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None
    if kind in (PREFERENCE, PROMPT):
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
    dataset = _checked(dataset, kind, args, name)
    kept = slice(None) if packing or args.max_length is None else _kept(args)  # packing cuts to length itself
    dataset = _tokenized(dataset, kind, tokenizer, args, completion_only, kept, name)
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


def _checked(dataset: Dataset, kind: str, args: SFTConfig, name: str) -> Dataset:
    """The rows that are of this kind."""
    bad, good = BadRows(name, args.on_bad_rows), []
    for number, row in enumerate(dataset):
        if fault := fault_of(_without_nulls(row), kind, args.dataset_text_field):
            bad.add(f"row {number} of {name}", fault)
        else:
            good.append(number)
    bad.finish(len(good))
    return dataset.select(good) if bad.count else dataset


def _tokenized(
    dataset: Dataset,
    kind: str,
    tokenizer: Any,
    args: SFTConfig,
    completion_only: bool,
    kept: slice,
    name: str,
) -> Dataset:
    """What is kept of each row's `input_ids` and `labels`; rows that cannot be tokenised are left out or raise."""

    def row_tokens(row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            tokens = _tokens(_without_nulls(row), kind, tokenizer, args, completion_only)
        except ValueError as error:
            return {"input_ids": [], "labels": [], FAULT: str(error)}
        labels = tokens.get("labels", tokens["input_ids"])
        return {"input_ids": tokens["input_ids"][kept], "labels": labels[kept], FAULT: ""}

    tokens = dataset.map(
        row_tokens,
        num_proc=args.dataset_num_proc,
        remove_columns=dataset.column_names,
        desc=f"Tokenizing {name}",
    )
    bad = BadRows(name, args.on_bad_rows)
    for number, problem in enumerate(tokens[FAULT]):
        if problem:
            bad.add(f"row {number} of {name}", Fault("", problem))
    bad.finish(len(tokens) - bad.count)
    if bad.count:
        tokens = tokens.filter(lambda problem: not problem, input_columns=FAULT)
    return tokens.remove_columns(FAULT)


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


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the fields that only other rows of its table have."""
    return {name: value for name, value in row.items() if value is not None}
