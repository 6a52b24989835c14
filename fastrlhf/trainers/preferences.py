"""Datasets of preferences, as the trainers on them take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset

from fastrlhf.data.rows import PREFERENCE, PREFERENCE_TOKENS
from fastrlhf.data.tokenize import preference_tokens
from fastrlhf.data.validate import DataError
from fastrlhf.trainers.dataset import as_dataset, checked, kind_of_columns, mapped

COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids")


def preferences(rows: Any, tokenizer: Any, args: Any, name: str, *, joined: bool = False) -> Dataset:
    """`prompt_ids` (perhaps empty), `chosen_ids`, `rejected_ids` and, if it is there, `margin` of the argument `name`.

    Args:
        joined: the prompt stands at the beginning of both answers, and not apart.

    Raises:
        TypeError: neither a dataset nor a list of rows.
        DataError: rows that are no preferences, and are not to be skipped.
    """
    dataset = as_dataset(rows, name)
    kind = kind_of_columns(dataset, name)
    if kind not in (PREFERENCE, PREFERENCE_TOKENS):
        raise DataError(f"{name} has rows of the kind {kind}, expected preferences: chosen and rejected")
    dataset = checked(dataset, kind, name, args.on_bad_rows)
    margin = {"margin": 0.0} if "margin" in dataset.column_names else {}

    def row_tokens(row: Mapping[str, Any]) -> dict[str, Any]:
        if margin and "margin" not in row:
            raise ValueError("the field 'margin' is missing, which other rows have")
        if kind == PREFERENCE_TOKENS:
            tokens = {field: row.get(field, []) for field in COLUMNS}
        else:
            tokens = preference_tokens(tokenizer, row)._asdict()
        if joined:
            prompt = tokens.pop(COLUMNS[0])
            tokens = {field: prompt + answer for field, answer in tokens.items()}
        return tokens | {field: float(row[field]) for field in margin}

    columns = COLUMNS[1:] if joined else COLUMNS
    return mapped(dataset, row_tokens, {field: [] for field in columns} | margin, name, args)


def kept(dataset: Dataset, keeps: Callable[[dict[str, list[int]]], bool], name: str) -> Dataset:
    """The pairs that fit into `max_length`.

    Raises:
        DataError: none does.
    """
    good = [number for number, row in enumerate(dataset) if keeps(row)]
    if not good:
        raise DataError(f"{name} has no pair that fits into max_length: raise it")
    return dataset.select(good) if len(good) < len(dataset) else dataset
