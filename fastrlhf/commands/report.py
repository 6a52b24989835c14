"""`fastrlhf report`."""

from __future__ import annotations

import argparse
from pathlib import Path

PAGE = "report.html"


def add_report(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "report", help="draw the plots of one or more runs on one page, of any of the trainers"
    )
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="the output_dir of a run (or of a transformers Trainer)",
    )
    parser.add_argument(
        "--out", type=Path, help=f"the page (default: {PAGE} in the run's folder; of several runs, here)"
    )
    parser.set_defaults(run=_run)


def _run(arguments: argparse.Namespace) -> int:
    from fastrlhf.report.compare import write_comparison
    from fastrlhf.report.page import SUMMARY, write_report
    from fastrlhf.report.runs import read_runs

    runs = arguments.runs
    try:
        if len(runs) == 1 and arguments.out is None and (runs[0] / SUMMARY).is_file():
            path = write_report(runs[0])  # the demo's, with its samples
        else:
            default = Path(PAGE) if len(runs) > 1 else runs[0] / PAGE
            path = write_comparison(read_runs(runs), arguments.out or default)
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f"fastrlhf report: {error}") from None
    print(path)
    return 0
