"""The plots of a run: which there are, and the PNG files they are drawn into."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastrlhf.report.panels import Panel, draw_panel
from fastrlhf.report.text import printable
from fastrlhf.report.theme import DARK, LIGHT, Theme


@dataclass(frozen=True)
class Plot:
    """One picture.

    Args:
        name: of the file, without its ending.
        caption: what it shows and how to read it, one line.
        panels: drawn beside one another.
    """

    name: str
    caption: str
    panels: tuple[Panel, ...]


PLOTS = (
    Plot(
        "reward",
        "Mean score of a step's completions, before the KL penalty.",
        (Panel("Reward", "mean score", {"objective/scores": "each step"}, before_after="reward"),),
    ),
    Plot(
        "judge",
        "The verdict of a classifier that takes no part in training.",
        (
            Panel(
                "Independent judge",
                "completions judged positive",
                {"judge/positive_rate": "each step"},
                before_after="judge",
                percent=True,
            ),
        ),
    ),
    Plot(
        "kl",
        "How far the policy has moved from where it started.",
        (
            Panel(
                "KL from the reference",
                "nats per sequence",
                {"objective/kl": "each step"},
                limit="kl_limit",
                from_zero=True,
            ),
        ),
    ),
    Plot(
        "entropy",
        "How undecided the policy is; near zero it repeats itself.",
        (Panel("Policy entropy", "nats per token", {"policy/entropy_avg": "each step"}),),
    ),
    Plot(
        "losses",
        "What is minimised; it need not fall for the reward to rise.",
        (
            Panel("Policy loss", "loss", {"loss/policy_avg": "each step"}),
            Panel("Value loss", "loss", {"loss/value_avg": "each step"}),
        ),
    ),
    Plot(
        "clip_fraction",
        "How often clipping held an update back.",
        (
            Panel(
                "Clipped updates",
                "share of tokens",
                {"policy/clipfrac_avg": "policy", "val/clipfrac_avg": "value"},
                from_zero=True,
                percent=True,
            ),
        ),
    ),
    Plot(
        "time",
        "Where the seconds of a step go.",
        (
            Panel(
                "Time per phase",
                "seconds per step",
                {
                    "time/rollout": "rollout",
                    "time/reward": "reward",
                    "time/evaluate": "evaluate",
                    "time/update": "update",
                },
                style="bars",
                from_zero=True,
            ),
        ),
    ),
    Plot(
        "memory",
        "Resident memory of the process.",
        (
            Panel(
                "Memory",
                "MB resident",
                {"memory/rss_mb": "in use", "memory/peak_rss_mb": "peak so far"},
                style="plain",
                from_zero=True,
            ),
        ),
    ),
)
# The overview takes the first of these that were measured: whether it worked, at what price, and how fast.
_OVERVIEW = ("reward", "judge", "kl", "time", "memory", "entropy", "clip_fraction", "losses")
_MOST_PANELS = 6
_DPI = 160


def draw_plots(
    rows: Sequence[Mapping[str, Any]],
    out_dir: str | os.PathLike[str],
    *,
    summary: Mapping[str, Any] | None = None,
    dark: bool = False,
) -> dict[str, Path]:
    """Draw a run's metrics into PNG files, one per plot, and the most telling ones into ``overview.png``.

    A metric that no row holds a finite value of is left out, and so is a plot that has no other.

    Args:
        rows: the rows of a metrics file, as `read_metrics` returns them.
        out_dir: where the files go; created if missing.
        summary: the run's summary, for the reference lines: ``before`` and ``after`` (mappings that may hold
            ``reward`` and ``judge``) and ``kl_limit`` in nats; its ``title`` heads the overview.
        dark: light on dark, for a dark page.

    Returns:
        The names of the plots drawn, in the order of `PLOTS` and ``"overview"`` last, to their files. The
        plots are 1,024 by 576 pixels, the overview is up to 2,080 wide.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    Figure = figure_class()
    theme = DARK if dark else LIGHT
    summary = summary or {}
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)

    measured = {plot.name: [panel for panel in plot.panels if panel.data(rows)] for plot in PLOTS}
    measured = {name: panels for name, panels in measured.items() if panels}
    files = {}
    for name, panels in measured.items():
        figure = new_figure(Figure)
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            draw_panel(axes, panel, rows, summary, theme)
        figure.align_ylabels()
        files[name] = save(figure, out_dir / f"{name}.png", theme)
    if measured:
        panels = [panel for name in _OVERVIEW for panel in measured.get(name, [])][:_MOST_PANELS]
        figure = _draw_overview(Figure, panels, rows, summary, theme)
        files["overview"] = save(figure, out_dir / "overview.png", theme)
    return files


def _draw_overview(Figure, panels: list[Panel], rows, summary: Mapping[str, Any], theme: Theme):
    columns = {1: 1, 2: 2, 4: 2}.get(len(panels), 3)
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(1 + 4 * columns, 0.7 + 3.1 * lines), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.12)
    cells = figure.subplots(lines, columns, squeeze=False).flat
    for axes, panel in zip(cells, panels, strict=False):
        draw_panel(axes, panel, rows, summary, theme)
    for axes in list(cells)[len(panels) :]:
        axes.set_axis_off()
    figure.align_ylabels()
    if summary.get("title"):
        # Without parse_math, a dollar sign in the title would start a formula.
        figure.suptitle(
            printable(summary["title"]),
            x=0.012,
            horizontalalignment="left",
            fontsize=16,
            fontweight="bold",
            color=theme.ink,
            parse_math=False,
        )
    return figure


def save(figure, path: Path, theme: Theme) -> Path:
    """Write `figure` as PNG; without the name and version of the program, the same run gives the same bytes."""
    figure.savefig(path, format="png", facecolor=theme.paper, metadata={"Software": None})
    return path


def new_figure(figure_class):
    """An empty figure of a plot's size."""
    figure = figure_class(figsize=(6.4, 3.6), dpi=_DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)
    return figure


def figure_class():
    """matplotlib's Figure, which unlike pyplot keeps no state and, when saved as PNG, draws with Agg."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("Plots need matplotlib: pip install fastrlhf[report]") from error
    return Figure
