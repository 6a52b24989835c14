"""A dataset of rows that need not have the same fields."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from datasets import Dataset


def table_of(rows: Sequence[Mapping[str, Any]]) -> Dataset:
    """The rows with every field that one of them has; None where a row has it not.

    (`Dataset.from_list` keeps the fields of the first row alone.)
    """
    names = dict.fromkeys(name for row in rows for name in row)
    return Dataset.from_dict({name: [row.get(name) for row in rows] for name in names})
