"""Fills the tables of docs/performance.md from the committed results: `python -m benchmarks.tables`."""

from __future__ import annotations

from pathlib import Path

from fastrlhf.bench.kernels_document import fill
from fastrlhf.bench.kernels_view import read_csv
from fastrlhf.bench.targets import read_targets

ROOT = Path(__file__).parents[1]
RESULTS, TARGETS = ROOT / "benchmarks/results/kernels.csv", ROOT / "benchmarks/kernels/targets.csv"
DOCUMENT = ROOT / "docs/performance.md"


def main() -> None:
    fill(DOCUMENT, read_csv(RESULTS), read_targets(TARGETS))
    print(DOCUMENT)


if __name__ == "__main__":
    main()
