"""Rows that are checked before they are trained on: the first bad ones are named, and the rest go on or stop."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from fastrlhf.data.rows import Fault, fault_of

ON_BAD_ROWS = ("stop", "skip")
SHOWN = 5


class DataError(ValueError):
    """Rows cannot be trained on; the message names the first ones, their fields and what is wrong with them."""


class Row(NamedTuple):
    """A row as it was read: where it stands, and its values or why there are none."""

    place: str
    values: Any
    fault: Fault | None = None


class BadRows:
    """Collects bad rows, and says what is to be done about them.

    Args:
        what: the data that the rows are of.
        on_bad_rows: "stop" raises at the end of the data, or at the `SHOWN`th bad row; "skip" leaves bad rows out with
            one warning for all.
    """

    def __init__(self, what: str, on_bad_rows: str):
        check_on_bad_rows(on_bad_rows)
        self.what, self.on_bad_rows = what, on_bad_rows
        self.found: list[str] = []
        self.count = 0

    def add(self, place: str, fault: Fault) -> None:
        """Note a bad row."""
        self.count += 1
        if len(self.found) < SHOWN:
            field = f", field {fault.field!r}" if fault.field else ""
            self.found.append(f"{place}{field}: {fault.problem}")
        if self.on_bad_rows == "stop" and self.count == SHOWN:
            self._stop("the rows after it were not looked at")

    def finish(self, good: int) -> None:
        """All rows have been looked at, and so many were good.

        Raises:
            DataError: bad rows were found and are not to be skipped, or no row was good.
        """
        if self.count and self.on_bad_rows == "stop":
            self._stop("mend them, or leave them out with on_bad_rows='skip'")
        if not good:
            lines = [f"{self.what} has no row" + (" that can be used" if self.count else ""), *self.found]
            raise DataError("\n  ".join(lines))
        if self.count:
            rows = f"{self.count} of {self.count + good} rows of {self.what} are left out"
            warnings.warn("\n  ".join([f"{rows}; the first are", *self.found]), stacklevel=4)

    def _stop(self, mend: str) -> None:
        rows = "a row" if self.count == 1 else f"{self.count} rows"
        raise DataError("\n  ".join([f"{rows} of {self.what} cannot be used ({mend})", *self.found]))


def good_rows(
    rows: Iterable[Row], kind: str, what: str, on_bad_rows: str = "stop", text_field: str = "text"
) -> Iterator[Any]:
    """The values of the rows that are of this kind, in their order.

    Args:
        rows: those of a file or a dataset.
        kind: one of `fastrlhf.data.rows.KINDS`.
        what: their file's or dataset's name.
        on_bad_rows, text_field: see `BadRows` and `kind_of`.

    Raises:
        DataError: a row cannot be used and is not to be skipped, or none can.
    """
    bad, good = BadRows(what, on_bad_rows), 0
    for row in rows:
        if fault := row.fault or fault_of(row.values, kind, text_field):
            bad.add(row.place, fault)
        else:
            good += 1
            yield row.values
    bad.finish(good)


def check_on_bad_rows(value: str) -> None:
    """Raise ValueError unless `value` is one of `ON_BAD_ROWS`."""
    if value not in ON_BAD_ROWS:
        raise ValueError(f"on_bad_rows is {value!r}, expected one of {', '.join(ON_BAD_ROWS)}")
