"""`fastrlhf bench capacity`."""

from __future__ import annotations

import argparse
from pathlib import Path

CARD = "a100-40"  # of the overlap


def add_capacity(questions: argparse._SubParsersAction) -> None:
    """Add `bench capacity`."""
    parser = questions.add_parser(
        "capacity",
        help="the largest model that trains on a card, the memory of a step, and how copies hide behind computing, on "
        "the simulated accelerator",
    )
    parser.add_argument(
        "--only",
        choices=["growth", "peak", "overlap", "real"],
        nargs="+",
        help="only these questions (default: all)",
    )
    parser.add_argument("--quick", action="store_true", help="tiny models, only to see that all runs")
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of capacity.csv and its pictures (default: benchmarks/results of a checkout, else this folder; "
        "with --quick a temporary one)",
    )
    parser.set_defaults(run=_capacity)


def _capacity(arguments: argparse.Namespace) -> int:
    from fastrlhf.bench import capacity, capacity_view
    from fastrlhf.bench.peer_commands import results_folder
    from fastrlhf.bench.results import merge_csv
    from fastrlhf.demo.quiet import quiet_loading
    from fastrlhf.report.draw_timeline import draw_timeline

    folder = arguments.out or results_folder(arguments.quick)
    sizes = capacity.QUICK if arguments.quick else capacity.FULL
    asked = arguments.only or capacity.QUESTIONS
    rows: list[capacity.CapacityRow] = []
    with quiet_loading():
        if "growth" in asked:
            rows += capacity.growth(sizes.family, sizes.card)
        if "peak" in asked:
            rows += capacity.peak(sizes.small, sizes.small_memory)
        if "overlap" in asked:
            found, intervals = capacity.overlap(sizes, CARD)
            rows += found
            title = "The update phase of a model four times the device"
            draw_timeline(intervals, folder / "capacity_timeline.png", title=title)
        if "real" in asked:
            folder.mkdir(parents=True, exist_ok=True)
            rows += capacity.real(folder)
    file = folder / "capacity.csv"
    everything = merge_csv(file, rows, ("question", "case"))
    if "growth" in asked:
        capacity_view.draw(everything, folder / "capacity.png")
    capacity_view.show(rows, verdicts=not arguments.quick)
    print(file)
    return 0
