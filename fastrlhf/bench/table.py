"""A table of contenders side by side, which fits a terminal: a row for each figure, a column for each contender."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Figure(NamedTuple):
    """A row of the table.

    Attributes:
        values: of each contender, ours first.
        compared: for each of the others how ours compares with it, and the verdict on that; empty: nothing is said.
    """

    title: str
    values: Sequence[str]
    compared: Sequence[tuple[str, str]] = ()


def show_side_by_side(
    title: str, contenders: Sequence[str], comparison: str, figures: Sequence[Figure]
) -> None:
    """Print the table.

    Args:
        contenders: their names, ours first.
        comparison: heads the columns of `Figure.compared`; a peer's name takes the place of `{}`.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column()
    for name in contenders:
        table.add_column(name, justify="right")
    for name in contenders[1:]:
        table.add_column(comparison.format(name), justify="right")
        table.add_column("target")
    for figure in figures:
        compared = figure.compared or [("", "")] * (len(contenders) - 1)
        table.add_row(figure.title, *figure.values, *(cell for pair in compared for cell in pair))
    Console().print(table)
