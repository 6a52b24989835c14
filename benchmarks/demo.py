"""Does the demo keep its promise for several seeds? `python -m benchmarks.demo`, on an idle machine, about 15 minutes.

Runs `fastrlhf demo` once a seed, each in a process of its own, and writes a row of each run's summary to
benchmarks/results/demo.csv. A run whose summary is already there is not repeated.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from pathlib import Path

from fastrlhf.doctor import cpu_name

RESULTS = Path(__file__).parent / "results" / "demo.csv"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the runs' folders go")
    arguments = parser.parse_args()
    rows = [row_of(arguments.runs / f"demo-seed-{seed}", seed) for seed in arguments.seeds]
    RESULTS.parent.mkdir(exist_ok=True)
    with open(RESULTS, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    print(f"{RESULTS}: {len(rows)} runs")


def row_of(folder: Path, seed: int) -> dict[str, object]:
    """The run's figures; the run is made first if its summary is not there."""
    summary = folder / "summary.json"
    if not summary.exists():
        command = [sys.executable, "-m", "fastrlhf.cli", "demo", "--seed", str(seed), "--out", str(folder)]
        subprocess.run(command, check=True)
    run = json.loads(summary.read_text())
    before, after = run["before"], run["after"]
    return {
        "seed": run["seed"],
        "steps": run["config"]["steps"],
        "reward_before": round(before["reward"], 3),
        "reward_after": round(after["reward"], 3),
        "judge_before": before["judge"],
        "judge_after": after["judge"],
        "kl_nats": round(run["kl_final"], 2),
        "minutes": round(run["wall_s"] / 60, 2),
        "peak_rss_mb": round(run["peak_rss_mb"]),
        "tokens_per_second": round(run["tokens_per_second"], 1),
        "device": cpu_name() if run["device"] == "cpu" else run["device"],
        **run["versions"],
    }


if __name__ == "__main__":
    main()
