"""The table and the plot of `fastrlhf bench capacity`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from fastrlhf.bench.capacity import CapacityRow
from fastrlhf.bench.peer_targets import verdict

_FIGURES = {"growth": "{:.1f} x", "peak": "{:.0f} MB", "overlap": "{:.3f}", "real": "{:.2f} x"}
_NAMES = {"full": "four models", "lora": "LoRA, one base", "nf4": "LoRA, NF4 base"}


def show(rows: Sequence[CapacityRow], verdicts: bool = True) -> None:
    """Print one line a row, at most 80 columns wide, with what the targets say of it."""
    print(f"{'what':<8}{'case':<13}{'who':<6}{'layers x width':>15}{'billion':>8}{'peak':>9} figure")
    for row in rows:
        shape = f"{row.layers} x {row.width:,}"
        peak = f"{row.peak_mb / 1e3:.2f} GB"
        figure = _FIGURES[row.question].format(row.value)
        if row.contender == "ours" and verdicts:
            figure += f" {verdict(f'{row.question} {row.case}', 'plain', row.question, row.value)}"
        line = f"{row.question:<8}{row.case:<13}{row.contender:<6}{shape:>15}{row.parameters_m / 1e3:>8.4g}{peak:>9}"
        print(f"{line} {figure}".rstrip())


def draw(rows: Sequence[Mapping[str, str]], path: Path) -> None:
    """Draw the largest model of each way to train, as rows of the file."""
    from fastrlhf.report.plots import figure_class, save
    from fastrlhf.report.theme import LIGHT

    bars = [row for row in rows if row["question"] == "growth"]
    bars.sort(key=lambda row: float(row["parameters_m"]))
    labels = [
        "plain PyTorch, four models" if row["contender"] == "plain" else f"fastrlhf, {_NAMES[row['case']]}"
        for row in bars
    ]
    sizes = [float(row["parameters_m"]) / 1e3 for row in bars]
    figure = figure_class()(figsize=(8, 1.3 + 0.5 * len(bars)), dpi=160, layout="constrained")
    axes = figure.subplots()
    colors = [LIGHT.muted if row["contender"] == "plain" else LIGHT.lines[0] for row in bars]
    axes.barh(labels, sizes, color=colors, height=0.62)
    for place, (size, row) in enumerate(zip(sizes, bars, strict=True)):
        text = f"{size:,.3g} billion" + (
            "" if row["contender"] == "plain" else f" ({float(row['value']):.0f} x)"
        )
        axes.annotate(
            text,
            (size, place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            color=LIGHT.ink,
        )
    axes.set_xscale("log")
    axes.set_xlim(min(sizes) / 2, max(sizes) * 6)
    device = float(bars[0]["device_mb"]) / 1e3
    axes.set_title(
        f"Parameters of the largest policy whose PPO step fits in {device:g} GB",
        loc="left",
        fontsize=12,
        fontweight="bold",
        color=LIGHT.ink,
    )
    axes.set_xlabel("billions of parameters (logarithmic)", fontsize=9.5, color=LIGHT.muted)
    axes.tick_params(colors=LIGHT.muted, labelsize=9, length=0)
    axes.set_facecolor(LIGHT.paper)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(LIGHT.grid)
    save(figure, path, LIGHT)
