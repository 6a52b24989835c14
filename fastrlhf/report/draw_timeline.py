"""The picture of a step on the simulated device's clock: when the card computed, and what crossed meanwhile."""

import os
from collections.abc import Iterable
from pathlib import Path

from fastrlhf.device.timeline import ENGINES, HOST, Interval
from fastrlhf.report.plots import figure_class, save
from fastrlhf.report.text import printable
from fastrlhf.report.theme import DARK, LIGHT, Theme
from fastrlhf.report.units import share

_DPI = 160
_WIDTH = 10.0
# Work that is closer than half a pixel is drawn as one bar: a step has tens of thousands of kernels.
_SHORTEST_GAP = 0.5 / (_DPI * _WIDTH)


def draw_timeline(
    intervals: Iterable[Interval],
    path: str | os.PathLike[str],
    *,
    title: str = "One step",
    dark: bool = False,
) -> Path:
    """Draw what ran when, a lane each for kernels, copies to the device, copies to the host, and the host's kernels.

    Args:
        intervals: as `Timeline.intervals` has them.
        path: the PNG file, 1,600 pixels wide; its folder is created if missing.
        title: heads the picture, with its length.
        dark: light on dark, for a dark page.

    Returns:
        `path`.

    Raises:
        ValueError: there are no intervals.
        ImportError: matplotlib is not installed.
    """
    intervals = list(intervals)
    if not intervals:
        raise ValueError("intervals is empty: nothing ran since the last reset")
    theme = DARK if dark else LIGHT
    lanes = [lane for lane in (*ENGINES, HOST) if lane != HOST or any(i.lane == HOST for i in intervals)]
    end = max(interval.end for interval in intervals)
    unit, scale = _unit(end)
    figure = figure_class()(figsize=(_WIDTH, 1.2 + 0.55 * len(lanes)), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    axes = figure.subplots()
    for place, (lane, color) in enumerate(zip(lanes, theme.lines, strict=False)):
        spans = [(i.start, i.end) for i in intervals if i.lane == lane]
        bars = [(scale * a, scale * (b - a)) for a, b in merged(spans, end * _SHORTEST_GAP)]
        axes.broken_barh(bars, (place - 0.36, 0.72), color=color, linewidth=0)
        busy = sum(b - a for a, b in spans) / end
        axes.annotate(
            share(busy),
            (1.0, place),
            xycoords=("axes fraction", "data"),
            xytext=(6, 0),
            textcoords="offset points",
            verticalalignment="center",
            fontsize=9,
            color=theme.muted,
        )
    axes.set_title(
        f"{printable(title)}: {scale * end:.4g} {unit}, busy shares on the right",
        loc="left",
        fontsize=12.5,
        fontweight="bold",
        color=theme.ink,
        parse_math=False,
    )
    axes.set_yticks(range(len(lanes)), lanes)
    axes.set_ylim(len(lanes) - 0.5, -0.5)
    axes.set_xlim(0, scale * end)
    axes.set_xlabel(unit, fontsize=9.5, color=theme.muted)
    _dress(axes, theme)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return save(figure, path, theme)


def merged(spans: Iterable[tuple[float, float]], gap: float) -> list[tuple[float, float]]:
    """Spans in order, those that overlap or are at most `gap` apart as one."""
    joined: list[tuple[float, float]] = []
    for start, end in sorted(spans):
        if joined and start - joined[-1][1] <= gap:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _unit(seconds: float) -> tuple[str, float]:
    for unit, scale in (("seconds", 1.0), ("milliseconds", 1e3)):
        if seconds * scale >= 1:
            return unit, scale
    return "microseconds", 1e6


def _dress(axes, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0, pad=5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.grid(axis="x", color=theme.grid, linewidth=1)
    axes.set_axisbelow(True)
