"""The page that tells how a run went: one HTML file that needs nothing beside itself."""

import base64
import json
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Any

from fastrlhf.report import sections
from fastrlhf.report.metrics import read_metrics
from fastrlhf.report.plots import draw_plots
from fastrlhf.report.text import printable

SUMMARY = "summary.json"
_TEMPLATE = Path(__file__).with_name("page.html")


def write_report(run_dir: str | os.PathLike[str]) -> Path:
    """Write ``report.html`` into a run's directory, and its plots as ``plots/*.png`` beside it.

    The page holds the plots itself, refers to nothing outside itself and runs no script. Each plot is in it
    twice, for a light and for a dark screen; the dark ones lie in ``plots/dark``.

    Args:
        run_dir: holds ``metrics.jsonl`` and, if the run got that far, ``summary.json``. Whatever these lack
            is left out of the page.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: if there is no ``metrics.jsonl``.
        ValueError: if one of the two files is damaged; the message names it.
        ImportError: if matplotlib is not installed.
    """
    run_dir = Path(run_dir)
    rows = read_metrics(run_dir / "metrics.jsonl")
    summary = _read_summary(run_dir / SUMMARY)
    light = draw_plots(rows, run_dir / "plots", summary=summary)
    dark = draw_plots(rows, run_dir / "plots" / "dark", summary=summary, dark=True)
    pictures = {name: (data_uri(light[name]), data_uri(dark[name])) for name in light if name != "overview"}
    body = [
        sections.headline(summary),
        sections.plots(pictures),
        sections.samples(summary),
        sections.setup(summary),
    ]
    title = summary.get("title") or "Training run"
    return fill_page(
        run_dir / "report.html", title, sections.lead(rows, summary), body, sections.footer(summary)
    )


def fill_page(path: Path, title: str, lead: str, body: Sequence[str], footer: str) -> Path:
    """Write a page; `lead`, the sections of `body` (empty ones are left out) and `footer` are HTML, `title` is text."""
    page = Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=escape(printable(title)),
        lead=lead,
        body="\n".join(section for section in body if section),
        footer=footer,
    )
    path.write_text(page, encoding="utf-8")
    return path


def _read_summary(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}).") from error
    if not isinstance(summary, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(summary).__name__}.")
    return summary


def data_uri(png: Path) -> str:
    """A picture as an address that holds it."""
    return "data:image/png;base64," + base64.b64encode(png.read_bytes()).decode()
