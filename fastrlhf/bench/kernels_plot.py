"""The plot of `fastrlhf bench kernels`: a panel for each operation, a bar for each case."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fastrlhf.bench.kernels import Row
from fastrlhf.bench.kernels_view import NAMES, by_operation, is_kernel

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS = 3
_BAR, _HEAD, _FOOT = 0.19, 0.75, 0.8  # inches: a bar, what a panel needs besides, and the caption
_MOST = 42  # bars of one panel: an operation with more has several


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw how many times faster each kernel of ours is than the best that is not ours, on one scale for all."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from fastrlhf.report.theme import LIGHT

    panels = [
        (name, group[first : first + _MOST])
        for name, group in by_operation(filter(is_kernel, rows))
        for first in range(0, len(group), _MOST)
    ]
    columns = _side_by_side([_HEAD + _BAR * len(bars) for _, bars in panels])
    height = max(bottom for column in columns for _, _, bottom in column)
    width = 6.4 * len(columns)
    figure = pyplot.figure(figsize=(width, height + _FOOT), facecolor=LIGHT.paper)
    speeds = [row.speedup for _, bars in panels for row in bars]
    limits = min(0.5, *speeds) / 1.2, max(2.0, *speeds) * 2.5
    for c, column in enumerate(columns):
        for index, top, bottom in column:
            name, bars = panels[index]
            left = (c + 0.47) / len(columns)
            place = (left, (height - bottom + _FOOT - 0.2) / (height + _FOOT))
            size = (0.5 / len(columns), (bottom - top - _HEAD) / (height + _FOOT))
            axes = figure.add_axes((*place, *size))
            _panel(axes, name, bars, limits)
    figure.text(
        0.5,
        0.15 / (height + _FOOT),
        "times faster than the best of PyTorch, torch.compile and named peers (orange: misses a target of its own)",
        ha="center",
        color=LIGHT.ink,
    )
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _side_by_side(heights: list[float]) -> list[list[tuple[int, float, float]]]:
    """Panels in columns of about one height: (index, top, bottom) in inches from the top."""
    columns: list[list[tuple[int, float, float]]] = [[] for _ in range(min(_COLUMNS, len(heights)))]
    for index, height in sorted(enumerate(heights), key=lambda item: -item[1]):
        shortest = min(columns, key=lambda column: column[-1][2] if column else 0.0)
        top = shortest[-1][2] if shortest else 0.0
        shortest.append((index, top, top + height))
    return columns


def _panel(axes: Axes, name: str, rows: Sequence[Row], limits: tuple[float, float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    from fastrlhf.report.theme import LIGHT

    several = len({row.contender for row in rows}) > 1
    names = [
        f"{row.case} ({NAMES.get(row.contender, row.contender)})" if several else row.case for row in rows
    ]
    colours = [LIGHT.lines[1] if "missed" in row.verdict else LIGHT.lines[0] for row in rows]
    spread = [
        [row.speedup - row.speedup_low for row in rows],
        [row.speedup_high - row.speedup for row in rows],
    ]
    axes.barh(
        range(len(rows)),
        [row.speedup for row in rows],
        xerr=spread,
        color=colours,
        ecolor=LIGHT.muted,
        height=0.72,
    )
    for position, row in enumerate(rows):
        axes.annotate(
            f" {row.speedup:.3g}", (row.speedup_high, position), va="center", fontsize=7, color=LIGHT.ink
        )
    axes.axvline(1, color=LIGHT.limit, linestyle="--", linewidth=1)
    axes.set_title(name, loc="left", fontsize=10, fontweight="bold", color=LIGHT.ink)
    axes.set_xscale("log")
    axes.set_xlim(*limits)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_yticks(range(len(rows)), names, fontsize=7)
    axes.xaxis.set_major_locator(LogLocator(10))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelsize=7)
    axes.spines[["top", "right"]].set_visible(False)
