"""What `fastrlhf bench kernels` shows on the console, and the file that it keeps."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from fastrlhf.bench.kernels import Row
from fastrlhf.kernels.dispatch import BACKENDS

if TYPE_CHECKING:
    from rich.table import Table

COLUMNS = [field.name for field in fields(Row)]
NAMES = {
    "eager": "PyTorch",
    "compiled": "torch.compile",
    "cpu": "C++",
    "cuda": "CUDA C++",
    "triton": "Triton",
}


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows; those of other operations that the file holds stay."""
    timed = {row.operation for row in rows}
    kept = [row for row in read_csv(path) if row.operation not in timed] if path.exists() else []
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(map(asdict, sorted([*kept, *rows], key=lambda row: row.operation)))


def read_csv(path: Path) -> list[Row]:
    """The rows of a file that `write_csv` wrote.

    Raises:
        ValueError: its columns are others.
    """
    with open(path, newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != COLUMNS:
            raise ValueError(f"{path} has the columns {reader.fieldnames}, expected {COLUMNS}: remove it")
        return [_parsed(line) for line in reader]


def _parsed(line: dict[str, str]) -> Row:
    values: dict[str, object] = dict(line)
    for field in fields(Row):
        text = line[field.name]
        if field.type in ("float", "float | None"):
            values[field.name] = float(text) if text else None
        elif field.type == "int":
            values[field.name] = int(text)
    return Row(**values)


def is_kernel(row: Row) -> bool:
    """Whether a kernel of ours made the row: the reference is plain PyTorch."""
    return row.contender in BACKENDS and row.contender != "reference"


def judged(row: Row) -> list[tuple[str, str, str]]:
    """Each target of a row, what was reached of it, and the verdict."""
    if not row.target:
        return []
    return list(zip(*(text.split("; ") for text in (row.target, row.reached, row.verdict)), strict=True))


def by_operation(rows: Iterable[Row]) -> list[tuple[str, list[Row]]]:
    """The rows of each operation, in alphabetical order."""
    ordered = sorted(rows, key=lambda row: row.operation)
    return [(name, list(group)) for name, group in groupby(ordered, key=lambda row: row.operation)]


def show(rows: Sequence[Row]) -> None:
    """Print a table for each operation, and how many targets are met."""
    from rich.console import Console

    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:  # a file, or a pipe, has no width
        console.width = 110
    for operation, group in by_operation(rows):
        console.print(table(operation, group))
    verdicts = [verdict for row in rows for verdict in row.verdict.split("; ") if verdict]
    missed = sum(verdict.startswith("missed") for verdict in verdicts)
    gbps = [row.read_gbps for row in rows if row.read_gbps is not None]
    if gbps:
        console.print(f"memory: a plain sum reads {min(gbps):.1f} to {max(gbps):.1f} GB/s")
    console.print(f"targets: {len(verdicts) - missed} of {len(verdicts)} met")


def table(operation: str, rows: Sequence[Row]) -> Table:
    """The rows of one operation, 110 columns wide at most."""
    from rich.box import SIMPLE
    from rich.table import Table

    found = Table(
        title=operation, title_justify="left", title_style="bold", box=SIMPLE, collapse_padding=True
    )
    found.add_column("case")
    found.add_column("contender", no_wrap=True)
    for name in ("ms", "20 to 80 %", "faster", "GB/s"):
        found.add_column(name, justify="right", no_wrap=True)
    found.add_column("target")
    case = None
    for row in rows:
        cells = (
            "" if row.case == case else row.case,
            NAMES.get(row.contender, row.contender),
            _number(row.p50_ms),
            f"{_number(row.p20_ms)}-{_number(row.p80_ms)}",
            f"{row.speedup:.2f} x",
            _number(row.gbps),
            _told(row),
        )
        style = "bold" if is_kernel(row) else "dim" if row.contender == "reference" else None
        found.add_row(*cells, style=style)
        case = row.case
    return found


def _number(value: float | None) -> str:
    """Three digits, and no powers of ten."""
    return "" if value is None else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _told(row: Row) -> str:
    """The targets and what came of them: green, or red where one is missed."""
    if not row.target:
        return ""
    lines = [f"{verdict.partition(':')[0]}: {reached} ({target})" for target, reached, verdict in judged(row)]
    colour = "red" if "missed" in row.verdict else "green"
    return "\n".join(f"[{colour}]{line}[/{colour}]" for line in lines)
