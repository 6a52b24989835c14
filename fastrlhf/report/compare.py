"""One page for several runs of any of the trainers: each metric in one plot, with a line for each run."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastrlhf.report import sections
from fastrlhf.report.page import data_uri, fill_page
from fastrlhf.report.panels import Panel, draw_panel
from fastrlhf.report.plots import figure_class, new_figure, save
from fastrlhf.report.runs import Run
from fastrlhf.report.series import series
from fastrlhf.report.text import printable
from fastrlhf.report.theme import DARK, LIGHT, Theme
from fastrlhf.report.units import duration, finite, number, share

_LONGEST_NAME = 24


@dataclass(frozen=True)
class Chart:
    """One plot.

    Args:
        title: the heading.
        unit: what the y axis counts.
        metrics: what trainers call it; of each run the first that it has is drawn.
        caption: what it shows, one line.
        from_zero, percent: see `Panel`.
    """

    title: str
    unit: str
    metrics: tuple[str, ...]
    caption: str
    from_zero: bool = False
    percent: bool = False

    def of(self, run: Run) -> str | None:
        """The metric that is drawn of a run."""
        return next((name for name in self.metrics if len(series(run.rows, name)[0])), None)


CHARTS = (
    Chart(
        "Reward",
        "mean score",
        ("objective/scores", "reward"),
        "Mean reward of completions, before any KL penalty.",
    ),
    Chart("Preferences", "chosen above rejected", ("rewards/accuracies", "accuracy"), "", percent=True),
    Chart(
        "Held-out preferences",
        "chosen above rejected",
        ("eval_rewards/accuracies", "eval_accuracy"),
        "",
        percent=True,
    ),
    Chart(
        "Margin", "chosen less rejected", ("rewards/margins", "margin"), "How far the chosen answer is ahead."
    ),
    Chart("Loss", "loss", ("loss",), "What is minimised; in learning from rewards it need not fall."),
    Chart(
        "Held-out loss",
        "loss",
        ("eval_loss",),
        "On rows that are not trained on; where it rises, the run overfits.",
    ),
    Chart("Token accuracy", "tokens foreseen", ("mean_token_accuracy",), "", percent=True),
    Chart(
        "KL of a sequence",
        "nats",
        ("objective/kl",),
        "How far the policy has moved from the reference.",
        True,
    ),
    Chart("KL of a token", "nats", ("kl",), "How far the policy has moved from the reference.", True),
    Chart(
        "Entropy", "nats per token", ("policy/entropy_avg", "entropy"), "Near zero the model repeats itself."
    ),
    Chart(
        "Length",
        "tokens",
        ("response_length", "completions/mean_length"),
        "Of the sampled completions.",
        True,
    ),
    Chart("Gradient norm", "before clipping", ("train/grad_norm", "grad_norm"), "", True),
    Chart("Learning rate", "per update", ("lr", "learning_rate"), "", True),
    Chart("Memory", "MB resident", ("memory/rss_mb",), "Of the process.", True),
)
# counters, and what is measured once at a run's end
_LEFT_OUT = ("step", "epoch", "episode", "elapsed_s", "total_flos", "num_tokens", "num_input_tokens_seen")
_OF_NO_INTEREST = {"output_dir", "logging_dir", "run_name"}


def write_comparison(runs: Sequence[Run], path: str | os.PathLike[str]) -> Path:
    """Write a page of these runs, which needs nothing beside itself.

    Args:
        runs: at least one.
        path: the HTML file; its folder is created if missing.

    Returns:
        `path`.

    Raises:
        ImportError: if matplotlib is not installed.
    """
    further = [Chart(name, "", (name,), "") for name in _further(runs)]
    body = [
        _table(runs),
        _plots("Training", [chart for chart in CHARTS if any(map(chart.of, runs))], runs),
        _plots("Further metrics", further, runs),
        _differences(runs) if len(runs) > 1 else sections.setup({"config": runs[0].record.get("options")}),
    ]
    title = runs[0].name if len(runs) == 1 else f"{len(runs)} runs"
    lead = (
        sections.lead(runs[0].rows, {})
        if len(runs) == 1
        else escape(printable(", ".join(run.name for run in runs)))
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    return fill_page(path, title, lead, body, sections.footer(runs[0].record))


def _further(runs: Iterable[Run]) -> list[str]:
    """Metrics that no chart has, of which some run has more than one value."""
    known = {*_LEFT_OUT, *(name for chart in CHARTS for name in chart.metrics)}
    names = {name for run in runs for row in run.rows for name in row} - known
    return sorted(name for name in names if any(len(series(run.rows, name)[0]) > 1 for run in runs))


def _plots(heading: str, charts: Sequence[Chart], runs: Sequence[Run]) -> str:
    if not charts:
        return ""
    with TemporaryDirectory() as folder:
        figures = []
        for chart in charts:
            light, dark = (
                data_uri(_draw(chart, runs, Path(folder) / "chart.png", theme)) for theme in (LIGHT, DARK)
            )
            figures.append(sections.figure(light, dark, f"{chart.title} over the steps", chart.caption))
    return f'<h2>{heading}</h2>\n<div class="plots">\n{chr(10).join(figures)}\n</div>'


def _draw(chart: Chart, runs: Sequence[Run], path: Path, theme: Theme) -> Path:
    """Draw a chart: the metric of each run under the run's number, as if they were metrics of one run."""
    drawn = {str(place): name for place, run in enumerate(runs) if (name := chart.of(run))}
    rows = [
        {"step": row.get("step"), place: row[name]}
        for place, name in drawn.items()
        for row in runs[int(place)].rows
        if name in row
    ]
    # of every run, so that each has its colour in all charts
    labels = {
        str(place): "each step" if len(runs) == 1 else _label(run.name) for place, run in enumerate(runs)
    }
    panel = Panel(_plain(chart.title), chart.unit, labels, from_zero=chart.from_zero, percent=chart.percent)
    figure = new_figure(figure_class())
    draw_panel(figure.subplots(), panel, rows, {}, theme)
    return save(figure, path, theme)


def _label(name: str) -> str:
    """A run's name in a legend: short, its end kept, and no label that matplotlib would leave out."""
    name = name if len(name) <= _LONGEST_NAME else f"…{name[1 - _LONGEST_NAME :]}"
    return _plain(f" {name}" if name.startswith("_") else name)


def _plain(text: str) -> str:
    """Text in which a dollar sign starts no formula."""
    return printable(text).replace("$", r"\$")


def _table(runs: Sequence[Run]) -> str:
    """Each run's length, and how its first chart began and ended."""
    lines = []
    for run in runs:
        steps = [step for row in run.rows if (step := finite(row.get("step")))]
        seconds = [
            value
            for row in run.rows
            for name in ("elapsed_s", "train_runtime")
            if (value := finite(row.get(name)))
        ]
        chart = next((chart for chart in CHARTS if chart.of(run)), None)
        cells = {
            "Run": run.name,
            "Model": (run.record.get("options") or {}).get("model", ""),
            "Steps": f"{int(max(steps)):,}" if steps else "none",
            "Time": duration(max(seconds)) if seconds else "",
            "Result": _result(chart, run) if chart else "",
        }
        lines.append(cells)
    return _html_table("Runs", list(lines[0]), [list(cells.values()) for cells in lines])


def _result(chart: Chart, run: Run) -> str:
    _, values = series(run.rows, chart.of(run))
    known = [value for value in values.tolist() if finite(value) is not None]
    show = share if chart.percent else number
    return f"{chart.title} {show(known[0])} → {show(known[-1])}"


def _differences(runs: Sequence[Run]) -> str:
    """The settings in which the runs with a record differ; fields of a configuration where all of them have it."""
    runs = [run for run in runs if run.record]
    if len(runs) < 2:
        return ""
    options, fields = ([run.record.get(part) or {} for run in runs] for part in ("options", "configuration"))
    names = dict.fromkeys(name for each in options for name in each)
    shared = [name for name in fields[0] if all(name in each for each in fields)]
    found = {name: [each.get(name, "not set") for each in options] for name in names}
    found |= {name: [each[name] for each in fields] for name in shared if name not in _OF_NO_INTEREST}
    lines = [
        [name, *map(str, values)]
        for name, values in found.items()
        if any(value != values[0] for value in values)
    ]
    return _html_table("What differs", ["Setting", *(run.name for run in runs)], lines) if lines else ""


def _html_table(heading: str, names: Sequence[str], lines: Sequence[Sequence[Any]]) -> str:
    names = [escape(printable(name)) for name in names]
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td data-label="{name}"><div class="text">{escape(printable(cell))}</div></td>'
            for name, cell in zip(names, line, strict=True)
        )
        + "</tr>"
        for line in lines
    )
    return (
        f'<h2>{heading}</h2>\n<div class="card"><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n'
        "</table></div>"
    )
