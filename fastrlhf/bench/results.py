"""What the comparisons with peers have in common: spreads, provenance and results files."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from statistics import median
from typing import NamedTuple

from fastrlhf.doctor import cpu_name, version_of
from fastrlhf.version import __version__


class Spread(NamedTuple):
    """The median of one figure over the rounds, its smallest and its largest value."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values: Iterable[float], digits: int = 3) -> Spread:
    """Of at least one value, rounded."""
    values = list(values)
    return Spread(*(round(value, digits) for value in (median(values), min(values), max(values))))


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a row was measured on and with; the last columns of every file."""

    cpu: str
    cores: int
    threads: int
    fastrlhf: str
    torch: str
    transformers: str
    peft: str
    peer: str


def provenance(threads: int, *peers: str) -> Provenance:
    """Of this machine and environment.

    Args:
        peers: packages with versions that stand beside the environment, such as "trl==1.12.0".
    """
    versions = {package: version_of(package) for package in ("torch", "transformers", "peft")}
    return Provenance(
        cpu=cpu_name(),
        cores=os.cpu_count() or 1,
        threads=threads,
        fastrlhf=__version__,
        **versions,
        peer=" ".join(peers),
    )


def _order(text: str) -> tuple[int, str]:
    """Whole numbers by their size, other texts by the alphabet."""
    return (int(text), "") if text.isdecimal() else (0, text)


def merge_csv(path: Path, rows: Sequence[Provenance], keys: Sequence[str]) -> list[dict[str, str]]:
    """Write rows to `path`; rows that it holds of other cases stay.

    Args:
        rows: at least one.
        keys: the columns that name a case; all its rows are replaced together.

    Returns:
        All rows of the file.
    """
    last = {field.name for field in fields(Provenance)}
    columns = sorted(asdict(rows[0]), key=lambda column: column in last)
    new = [{column: str(value) for column, value in asdict(row).items()} for row in rows]
    measured = {tuple(row[key] for key in keys) for row in new}
    kept = []
    if path.exists():
        with open(path, newline="") as file:
            kept = [row for row in csv.DictReader(file) if tuple(row[key] for key in keys) not in measured]
    lines = sorted([*kept, *new], key=lambda row: [_order(row[key]) for key in keys])
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n", restval="", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(lines)
    return lines
