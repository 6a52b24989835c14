"""Every kernel test and benchmark on this machine's GPU, with their figures in a file: `make gpu-check`.

Writes benchmarks/results/gpu_<card>.json: the card, versions, what the tests and `fastrlhf doctor --verify` found, and
the benchmarks' rows. Returns 1 if a test failed or a kernel is wrong. Without a GPU it only makes sure that it would
find its cases, says so, and returns 0 (1 if it would find none).
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import torch

from fastrlhf.bench.kernels import summarise, time_round
from fastrlhf.doctor import PACKAGES, gpu_names, version_of
from fastrlhf.version import __version__

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
TESTS = ["tests/kernels", "tests/device", "-m", "gpu"]
BENCHMARKS = ["benchmarks/kernels", "-m", "gpu"]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results file")
    arguments = parser.parse_args(argv)
    if not torch.cuda.is_available():
        return without_gpu()
    found = {"card": gpu_names(), "versions": versions(), "date": datetime.now(UTC).date().isoformat()}
    found["tests"] = run_tests()
    found["doctor"] = run_doctor()
    found["benchmarks"] = [asdict(row) for row in run_benchmarks()]
    path = write(found, arguments.out)
    failed = found["tests"]["failed"]
    print(
        f"{path}: {found['tests']['passed']} tests passed, {len(failed)} failed, {len(found['benchmarks'])} timings"
    )
    print(*(f"  {name}" for name in failed), sep="\n")
    return int(bool(failed) or found["doctor"]["status"] != 0 or not found["tests"]["passed"])


def without_gpu() -> int:
    """Count what a GPU would run."""
    tests, benchmarks = collect(TESTS), collect(BENCHMARKS)
    print(f"there is no GPU here; on one, {tests} tests and {benchmarks} benchmarks would run")
    if tests and benchmarks:
        return 0
    print("that is nothing to run: the cases of the GPU are not found any more")
    return 1


def collect(selection: list[str]) -> int:
    """How many cases a GPU would run. FASTRLHF_GPU_CASES=1 has the tests name those of the backends that need one."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "--no-header", *selection]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "FASTRLHF_GPU_CASES": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode not in (0, 5):  # 5: nothing collected
        raise SystemExit(f"{done.stdout}{done.stderr}\ngpu-check: the cases cannot be collected")
    counted = re.search(r"^(\d+)(?:/\d+)? tests? collected", done.stdout, re.MULTILINE)
    return int(counted.group(1)) if counted else 0


def run_tests() -> dict:
    """Counts of the tests marked `gpu`, and the names of those that failed."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        subprocess.run(
            [sys.executable, "-m", "pytest", *TESTS, f"--junitxml={report}"], cwd=ROOT, check=False
        )
        return read_tests(report.read_text()) if report.exists() else read_tests("<none/>")


def read_tests(report: str) -> dict:
    """What a report in JUnit's format counts."""
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case for case in cases if case.find("skipped") is not None]
    return {
        "passed": len(cases) - len(failed) - len(skipped),
        "skipped": len(skipped),
        "failed": [f"{case.get('classname')}.{case.get('name')}" for case in failed],
    }


def run_doctor() -> dict:
    """The exit status and the table of `fastrlhf doctor --verify`."""
    command = [sys.executable, "-m", "fastrlhf.cli", "doctor", "--verify"]
    environment = {**os.environ, "COLUMNS": "200"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    return {"status": done.returncode, "shown": done.stdout.splitlines()}


def run_benchmarks() -> list:
    """Rows of every benchmark, three rounds."""
    files = sorted(path for path in (ROOT / "benchmarks" / "kernels").glob("*.py") if path.stem != "__init__")
    return summarise([time_round(files, threads=2, compiled=True) for _ in range(3)])


def versions() -> dict[str, str]:
    """Of the package and what it stands on."""
    return {
        "fastrlhf": __version__,
        "python": sys.version.split()[0],
        "cuda": str(torch.version.cuda),
        **{name: version_of(name) for name in PACKAGES},
    }


def write(found: dict, folder: Path) -> Path:
    """Write the results file, named after the first card."""
    name = re.sub(r"[^a-z0-9]+", "_", found["card"][0].partition(" ")[2].partition(",")[0].lower())
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"gpu_{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


if __name__ == "__main__":
    sys.exit(main())
