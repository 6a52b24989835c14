"""Datasets of rows: taken as they were passed, checked, and mapped to tokens with the rows that fail named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from datasets import Dataset, Features, IterableDataset, Sequence, Value

from fastrlhf.data.rows import Fault, fault_of, kind_of
from fastrlhf.data.table import table_of
from fastrlhf.data.validate import BadRows, DataError

FAULT = "fault"


def as_dataset(rows: Any, name: str) -> Dataset:
    """A dataset of what was passed as the argument `name`: a `Dataset`, or a list of rows.

    Raises:
        TypeError, DataError: neither, a row without fields, or there is no row.
    """
    if isinstance(rows, IterableDataset):
        raise TypeError(
            f"{name} is an IterableDataset, which is not supported: pass a Dataset, or rows in a list"
        )
    if isinstance(rows, (list, tuple)):
        for number, row in enumerate(rows):
            if not isinstance(row, Mapping):
                raise TypeError(f"row {number} of {name} is a {type(row).__name__}, expected named fields")
        rows = table_of(rows)
    if not isinstance(rows, Dataset):
        raise TypeError(f"{name} is a {type(rows).__name__}, expected a datasets.Dataset or a list of rows")
    if len(rows) == 0:
        raise DataError(f"{name} has no row")
    return rows


def each_dataset(datasets: Any, name: str, prepare: Callable[[Any, str], Dataset]) -> Any:
    """What `prepare` makes of the argument `name`: None, one dataset, or several by name."""
    if datasets is None:
        return None
    if isinstance(datasets, dict):
        return {key: prepare(dataset, f"{name}[{key!r}]") for key, dataset in datasets.items()}
    return prepare(datasets, name)


def kind_of_columns(dataset: Dataset, name: str, text_field: str = "text") -> str:
    """The kind of a dataset's rows, by its columns.

    Raises:
        DataError: none that is known.
    """
    try:
        return kind_of(dict.fromkeys(dataset.column_names), text_field)
    except ValueError as error:
        raise DataError(f"{name}: {error}") from None


def checked(dataset: Dataset, kind: str, name: str, on_bad_rows: str, text_field: str = "text") -> Dataset:
    """The rows that are of this kind.

    Raises:
        DataError: some are not, and are not to be skipped, or none is.
    """
    bad, good = BadRows(name, on_bad_rows), []
    for number, row in enumerate(dataset):
        if fault := fault_of(_without_nulls(row), kind, text_field):
            bad.add(f"row {number} of {name}", fault)
        else:
            good.append(number)
    bad.finish(len(good))
    return dataset.select(good) if bad.count else dataset


def mapped(
    dataset: Dataset,
    function: Callable[[Mapping[str, Any]], dict[str, Any]],
    empty: dict[str, Any],
    name: str,
    args: Any,
) -> Dataset:
    """What `function` makes of each row, in place of its columns.

    Args:
        function: raises ValueError for a row that cannot be used.
        empty: what stands for such a row until it is left out: lists for columns of tokens, else floats.
        args: `dataset_num_proc` processes do it, and `on_bad_rows` says what becomes of such rows.

    Raises:
        DataError: as `checked`.
    """

    def made(row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            return function(_without_nulls(row)) | {FAULT: ""}
        except ValueError as error:
            return empty | {FAULT: str(error)}

    kinds = {
        name: Sequence(Value("int64")) if value == [] else Value("float64") for name, value in empty.items()
    }
    rows = dataset.map(
        made,
        # a first thousand of empty lists would not say what the next lists hold
        features=Features(kinds | {FAULT: Value("string")}),
        num_proc=args.dataset_num_proc,
        remove_columns=dataset.column_names,
        desc=f"Tokenizing {name}",
    )
    bad = BadRows(name, args.on_bad_rows)
    for number, problem in enumerate(rows[FAULT]):
        if problem:
            bad.add(f"row {number} of {name}", Fault("", problem))
    bad.finish(len(rows) - bad.count)
    if bad.count:
        rows = rows.filter(lambda problem: not problem, input_columns=FAULT)
    return rows.remove_columns(FAULT)


def _without_nulls(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row without the fields that only other rows of its table have."""
    return {name: value for name, value in row.items() if value is not None}
