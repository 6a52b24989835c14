"""Datasets from files: JSONL, JSON, CSV, Parquet, and folders that `datasets` has saved."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_from_disk

from fastrlhf.data.rows import Fault, kind_of
from fastrlhf.data.table import table_of
from fastrlhf.data.validate import DataError, Row, good_rows

ROWS_AT_ONCE = 1024


def load_file(
    path: str | Path,
    *,
    kind: str | None = None,
    split: str = "train",
    on_bad_rows: str = "stop",
    text_field: str = "text",
) -> Dataset:
    """The rows of a file or folder, checked, in memory.

    Args:
        path: a file (`.jsonl`, `.json`, `.csv`, `.tsv`, `.parquet`), a folder written by `Dataset.save_to_disk`, or a
            folder of such files, read in the order of their names.
        kind: one of `fastrlhf.data.rows.KINDS`; None: what the first good row is.
        split: of a folder that holds a `DatasetDict`.
        on_bad_rows: "stop" raises and names the first bad rows, with file, line and field; "skip" leaves them out with
            a warning.
        text_field: the name of a text row's field.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a format that is not known, a split that is not there, or rows that cannot be used.
    """
    path = Path(path)
    rows = _rows_of(path, split)
    if kind is None:
        rows, kind = _with_kind(rows, path, text_field)
    return table_of(list(good_rows(rows, kind, str(path), on_bad_rows, text_field)))


def _rows_of(path: Path, split: str) -> Iterator[Row]:
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: pass a file or folder of rows")
    if not path.is_dir():
        return _reader(path)(path)
    if (path / "dataset_info.json").exists() or (path / "dataset_dict.json").exists():
        return _saved_rows(path, split)
    files = sorted(file for file in path.iterdir() if file.suffix.lower() in _READERS)
    if not files:
        raise DataError(f"{path} holds no dataset and no {', '.join(_READERS)} file")
    return chain.from_iterable(_reader(file)(file) for file in files)


def _with_kind(rows: Iterator[Row], path: Path, text_field: str) -> tuple[Iterator[Row], str]:
    """The rows again, and the kind of the first that has one."""
    seen = []
    for row in rows:
        seen.append(row)
        if row.fault is None and isinstance(row.values, dict):
            try:
                return chain(seen, rows), kind_of(row.values, text_field)
            except ValueError as error:
                raise DataError(f"{row.place}: {error}") from None
    first = f"; {seen[0].place}: {seen[0].fault.problem}" if seen and seen[0].fault else ""
    raise DataError(f"{path} has no row that can be used{first}")


def _reader(path: Path) -> Callable[[Path], Iterator[Row]]:
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} ends in {path.suffix or 'nothing'}, expected one of {', '.join(_READERS)}, or a folder"
        )
    return reader


def _jsonl_rows(path: Path) -> Iterator[Row]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                if text:
                    yield Row(place, json.loads(text))
            except UnicodeDecodeError as error:
                yield Row(place, None, Fault("", f"is not UTF-8 (byte {error.start + 1} of the line)"))
            except json.JSONDecodeError as error:
                yield Row(place, None, Fault("", f"is not JSON: {error.msg} at column {error.colno}"))


def _json_rows(path: Path) -> Iterator[Row]:
    """A list of rows; a file of one row a line is JSONL, whatever its name."""
    try:
        rows = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError:
        return _jsonl_rows(path)
    rows = rows if isinstance(rows, list) else [rows]
    return (Row(f"{path}, row {number}", row) for number, row in enumerate(rows, start=1))


def _csv_rows(path: Path) -> Iterator[Row]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        while True:
            place = f"{path}, line {reader.line_num + 1}"
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(place, None, Fault("", f"is not CSV: {error}"))
                continue
            if None in values or None in values.values():
                wanted = len(reader.fieldnames or ())
                has = "more" if None in values else "fewer"
                yield Row(place, None, Fault("", f"has {has} fields than the header's {wanted}"))
            else:
                yield Row(place, values)


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow
    import pyarrow.parquet as parquet

    try:
        batches = parquet.ParquetFile(path).iter_batches(ROWS_AT_ONCE)
    except pyarrow.ArrowInvalid as error:
        raise DataError(f"{path} is not Parquet: {error}") from None
    rows = chain.from_iterable(batch.to_pylist() for batch in batches)
    return (Row(f"{path}, row {number}", values) for number, values in enumerate(rows, start=1))


def _saved_rows(path: Path, split: str) -> Iterator[Row]:
    saved: Any = load_from_disk(str(path))
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise DataError(f"{path} has no split {split!r}, but {', '.join(saved)}")
        saved = saved[split]
    return (Row(f"{path}, row {number}", values) for number, values in enumerate(saved, start=1))


_READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _jsonl_rows,
    ".json": _json_rows,
    ".csv": _csv_rows,
    ".tsv": _csv_rows,
    ".parquet": _parquet_rows,
}
