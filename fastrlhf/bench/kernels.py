"""Times every backend of every operation beside PyTorch's ways, round after round, and says what came of it.

A round is one pytest-benchmark run in a process of its own, in which the contenders of a case take their turns. A ratio
is formed within a round, so that a slower hour of the machine touches both sides of it.
"""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from fastrlhf.kernels.dispatch import BACKENDS


@dataclass(frozen=True)
class Timing:
    """One contender of one case in one round: all its measurements, in seconds."""

    operation: str
    case: str
    contender: str
    seconds: tuple[float, ...]
    device: str
    threads: int
    torch: str


@dataclass(frozen=True)
class Row:
    """One contender of one case over all rounds.

    Attributes:
        p20_ms, p50_ms, p80_ms: percentiles of all measurements.
        speedup: how many times faster than the best way that is not ours, the median over the rounds; low and high
            are the smallest and the largest of them. 1 for that best way itself.
    """

    operation: str
    case: str
    contender: str
    p20_ms: float
    p50_ms: float
    p80_ms: float
    speedup: float
    speedup_low: float
    speedup_high: float
    measurements: int
    device: str
    threads: int
    torch: str


def time_round(files: Sequence[Path], *, threads: int, compiled: bool) -> list[Timing]:
    """Run the cases once.

    Args:
        files: of `benchmarks/kernels/`.
        threads: of the processor.
        compiled: time torch.compile of the plain computation too.

    Raises:
        SystemExit: a case failed; its output has been shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "round.json")
        command = [sys.executable, "-m", "pytest", *map(str, files), "--benchmark-only", "-q", "--no-header"]
        command += [f"--benchmark-json={report}", "--benchmark-max-time=0.5", "--benchmark-min-rounds=5"]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(threads),
            "FASTRLHF_BENCH_COMPILED": str(int(compiled)),
        }
        done = subprocess.run(
            command, cwd=files[0].parents[2], env=environment, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}\nfastrlhf bench: a case failed")
        return read_report(json.loads(report.read_text()))


def read_report(report: dict) -> list[Timing]:
    """The timings of a pytest-benchmark report that holds all data."""
    return [
        Timing(
            operation=Path(found["fullname"].partition("::")[0]).stem,
            case=found["group"].partition("[")[2].removesuffix("]"),
            contender=found["params"]["contender"],
            seconds=tuple(found["stats"]["data"]),
            device=found["extra_info"]["device"],
            threads=found["extra_info"]["threads"],
            torch=found["extra_info"]["torch"],
        )
        for found in report["benchmarks"]
    ]


def summarise(rounds: Sequence[Sequence[Timing]]) -> list[Row]:
    """One row a contender and case, in the order in which they ran."""
    ratios: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    timings: dict[tuple[str, str, str], list[Timing]] = defaultdict(list)
    for one_round in rounds:
        best: dict[tuple[str, str], float] = {}
        for timing in one_round:
            if timing.contender not in BACKENDS:
                key = timing.operation, timing.case
                best[key] = min(best.get(key, float("inf")), median(timing.seconds))
        for timing in one_round:
            key = timing.operation, timing.case, timing.contender
            timings[key].append(timing)
            ratios[key].append(best[key[:2]] / median(timing.seconds))
    return [_row(timings[key], ratios[key]) for key in timings]


def _row(timings: list[Timing], ratios: list[float]) -> Row:
    first, seconds = timings[0], sorted(second for timing in timings for second in timing.seconds)

    def percentile(share: float) -> float:
        return round(1e3 * seconds[round(share * (len(seconds) - 1))], 5)

    return Row(
        first.operation,
        first.case,
        first.contender,
        percentile(0.2),
        percentile(0.5),
        percentile(0.8),
        *(round(ratio, 2) for ratio in (median(ratios), min(ratios), max(ratios))),
        len(seconds),
        first.device,
        first.threads,
        first.torch,
    )


def write_csv(rows: Sequence[Row], path: Path) -> None:
    """Write the rows; those of other operations that the file holds stay."""
    timed = {row.operation for row in rows}
    kept = []
    if path.exists():
        with open(path, newline="") as file:
            kept = [old for old in csv.DictReader(file) if old["operation"] not in timed]
    lines = sorted([*kept, *map(asdict, rows)], key=lambda line: line["operation"])
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])), lineterminator="\n")
        writer.writeheader()
        writer.writerows(lines)


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "operation", "case", "contender", "20 %", "50 %", "80 % (ms)", "times faster than the best other"
    )
    for row in rows:
        ratio = f"{row.speedup:.2f} ({row.speedup_low:.2f} to {row.speedup_high:.2f})"
        times = (f"{number:.4g}" for number in (row.p20_ms, row.p50_ms, row.p80_ms))
        table.add_row(row.operation, row.case, row.contender, *times, ratio)
    Console().print(table)


def draw(rows: Sequence[Row], path: Path) -> None:
    """One bar for each case that a backend of ours other than the reference ran: how many times faster it is."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from fastrlhf.report.theme import LIGHT

    ours = [row for row in rows if row.contender in BACKENDS and row.contender != "reference"]
    figure, axes = pyplot.subplots(figsize=(10, 1 + 0.32 * max(1, len(ours))), layout="constrained")
    names = [f"{row.operation} {row.case} ({row.contender})" for row in ours]
    spread = [
        [row.speedup - row.speedup_low for row in ours],
        [row.speedup_high - row.speedup for row in ours],
    ]
    axes.barh(names, [row.speedup for row in ours], xerr=spread, color=LIGHT.lines[0], ecolor=LIGHT.muted)
    for position, row in enumerate(ours):
        axes.annotate(f" {row.speedup:.3g}", (row.speedup_high, position), va="center", color=LIGHT.ink)
    axes.axvline(1, color=LIGHT.limit, linestyle="--")
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.invert_yaxis()
    axes.set_xlabel("times faster than the best of PyTorch, torch.compile and named peers (1 = as fast)")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
