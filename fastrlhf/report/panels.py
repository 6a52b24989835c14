"""How one metric, or a few of one kind, are drawn on one pair of axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastrlhf.report.series import binned, running_mean, series, smoothing_window
from fastrlhf.report.theme import Theme
from fastrlhf.report.units import finite, number, share

Rows = Sequence[Mapping[str, Any]]
# Metric to its steps and its values.
Data = dict[str, tuple[np.ndarray, np.ndarray]]
# More bars than this run into one another at the size of a plot.
_MOST_BARS = 60
_STROKES = ("-", "--", ":", "-.")
# In a legend of one line; more go into columns.
_MOST_LETTERS, _COLUMNS = 60, 3


@dataclass(frozen=True)
class Panel:
    """What to draw on one pair of axes.

    Args:
        title: the heading, a few words.
        unit: what the y axis counts.
        metrics: names of metrics to their labels in the legend.
        style: ``"noisy"`` draws a faint line through every step and a running mean over it, ``"plain"`` one
            line, ``"bars"`` stacks the metrics of a step on one another.
        before_after: the name under which ``summary["before"]`` and ``summary["after"]`` hold this metric.
        limit: the name under which the summary holds a value that must not be passed.
        from_zero: whether the y axis starts at zero, unless a value is negative.
        percent: whether the values are shares of one, shown as percentages.
    """

    title: str
    unit: str
    metrics: Mapping[str, str]
    style: str = "noisy"
    before_after: str | None = None
    limit: str | None = None
    from_zero: bool = False
    percent: bool = False

    def data(self, rows: Rows) -> Data:
        """The metrics that were measured."""
        found = {name: series(rows, name) for name in self.metrics}
        return {name: (steps, values) for name, (steps, values) in found.items() if len(steps)}


def draw_panel(axes, panel: Panel, rows: Rows, summary: Mapping[str, Any], theme: Theme) -> None:
    """Draw a panel on matplotlib axes, which it takes over: title, labels, grid, legend.

    Args:
        axes: empty ``matplotlib.axes.Axes``.
        panel: what to draw; at least one of its metrics is in the rows.
        rows: the rows of the metrics file.
        summary: the run's summary; what it does not hold is not drawn.
        theme: the colours.
    """
    data = panel.data(rows)
    title = panel.title
    if panel.style == "bars":
        size = _draw_bars(axes, panel, data, theme)
        title += f" (mean of {size} steps)" if size > 1 else ""
    else:
        _draw_lines(axes, panel, data, theme)
    _dress(axes, panel, title, theme)
    _draw_references(axes, panel, summary, theme)


def _draw_lines(axes, panel: Panel, data: Data, theme: Theme) -> None:
    for place, (name, label) in enumerate(panel.metrics.items()):
        if name not in data:
            continue
        # more lines than colours are told apart by their strokes
        again, place = divmod(place, len(theme.lines))
        color, stroke = theme.lines[place], _STROKES[again % len(_STROKES)]
        steps, values = data[name]
        window = smoothing_window(len(steps)) if panel.style == "noisy" else 1
        if window > 1:
            # With one metric the legend tells its two lines apart, with several the metrics.
            each = label if len(panel.metrics) == 1 else None
            axes.plot(steps, values, color=color, linewidth=1, alpha=0.35, label=each)
            label = f"mean of {window} steps" if each else label
        # A dot, since a line through one point is invisible.
        marker = "o" if len(steps) == 1 else None
        calm = running_mean(values, window)
        axes.plot(steps, calm, stroke, color=color, linewidth=2.2, marker=marker, label=label)


def _draw_references(axes, panel: Panel, summary: Mapping[str, Any], theme: Theme) -> None:
    from matplotlib.patheffects import withStroke

    show = share if panel.percent else number
    marks = []
    if panel.before_after:
        # A label sits where the curve usually is not: it starts near "before" and ends near "after".
        for when, side in (("before", "right"), ("after", "left")):
            value = finite((summary.get(when) or {}).get(panel.before_after))
            if value is not None:
                marks.append((value, f"{when} training {show(value)}", theme.muted, side))
    limit = finite(summary.get(panel.limit)) if panel.limit else None
    if limit is not None:
        marks.append((limit, f"limit {limit:g} nats", theme.limit, "left"))
    for value, label, color, side in marks:
        axes.axhline(value, color=color, linewidth=1.3, linestyle=(0, (5, 3)), zorder=2)
        axes.annotate(
            label,
            xy=(0.0 if side == "left" else 1.0, value),
            xycoords=("axes fraction", "data"),
            xytext=(4 if side == "left" else -4, 4),
            textcoords="offset points",
            horizontalalignment=side,
            fontsize=9,
            color=color,
            zorder=6,
            path_effects=[withStroke(linewidth=3, foreground=theme.paper)],
        )
    if marks:
        # Room for every line, and for the label of one at the very top, below the legend.
        low, high = axes.get_ylim()
        values = [value for value, *_ in marks]
        span = max(high, *values) - min(low, *values)
        low = low if min(values) >= low else min(values) - 0.05 * span
        axes.set_ylim(low, max(high, max(values) + 0.12 * span))


def _draw_bars(axes, panel: Panel, data: Data, theme: Theme) -> int:
    """Draw the bars; returns over how many steps each one is a mean."""
    steps = np.unique(np.concatenate([steps for steps, _ in data.values()]))
    size = -(-len(steps) // _MOST_BARS)
    places = binned(steps, size)
    width = 0.82 * (places[1] - places[0] if len(places) > 1 else 1.0)
    bottom = np.zeros(len(places))
    for color, (name, label) in zip(theme.lines, panel.metrics.items(), strict=False):
        if name not in data:
            continue
        heights = np.zeros(len(steps))
        heights[np.searchsorted(steps, data[name][0])] = data[name][1]
        heights = binned(heights, size)
        axes.bar(places, heights, width, bottom=bottom, color=color, label=label, linewidth=0)
        bottom += heights
    return size


def _dress(axes, panel: Panel, title: str, theme: Theme) -> None:
    from matplotlib.ticker import MaxNLocator, PercentFormatter, StrMethodFormatter

    axes.set_facecolor(theme.paper)
    columns = _legend_columns(panel)
    lines = -(-len(panel.metrics) // columns)
    axes.set_title(
        title, loc="left", fontsize=12.5, fontweight="bold", color=theme.ink, pad=24 + 13 * (lines - 1)
    )
    axes.set_xlabel("step", fontsize=9.5, color=theme.muted)
    axes.set_ylabel(panel.unit, fontsize=9.5, color=theme.muted)
    axes.tick_params(colors=theme.muted, labelsize=9, length=0, pad=5)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(theme.grid)
    axes.grid(axis="y", color=theme.grid, linewidth=1)
    axes.set_axisbelow(True)
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True, steps=[1, 2, 2.5, 5, 10], min_n_ticks=1))
    if axes.dataLim.width < 1:
        # A single step, whose bar would fill the whole width.
        step = (axes.dataLim.x0 + axes.dataLim.x1) / 2
        axes.set_xlim(step - 3, step + 3)
        axes.set_xticks([step])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if panel.from_zero and axes.dataLim.y0 >= 0:
        axes.set_ylim(bottom=0.0)
    if panel.percent:
        axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    elif axes.get_ylim()[1] >= 1000:
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1),
        ncols=columns,
        fontsize=9,
        labelcolor=theme.muted,
        frameon=False,
        borderaxespad=0.4,
        borderpad=0,
        handlelength=1.2,
        handletextpad=0.5,
        columnspacing=1.3,
    )


def _legend_columns(panel: Panel) -> int:
    fits = sum(map(len, panel.metrics.values())) <= _MOST_LETTERS
    # with one metric there are two lines
    return len(panel.metrics) + 1 if fits else _COLUMNS
