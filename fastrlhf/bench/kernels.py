"""Times every backend of every operation beside PyTorch's ways, round after round, and says what came of it.

A round is one pytest-benchmark run in a process of its own, in which the contenders of a case take their turns (and a
second one, for those that slow PyTorch's threads down). A ratio is formed within a round, so that a slower hour of the
machine touches both sides of it.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fastrlhf.bench import targets
from fastrlhf.bench.targets import BEST, MEMORY, Target
from fastrlhf.kernels.dispatch import BACKENDS


@dataclass(frozen=True)
class Timing:
    """One contender of one case in one round.

    Attributes:
        seconds: all its measurements.
        nbytes, flops: what the case has to move and compute at least; 0 where it is not known of this contender.
        temporary_bytes: the most that PyTorch's allocator held beyond the result; None where it was not asked.
        read_gbps: how fast the device's memory was read in this round, in GB/s.
    """

    operation: str
    case: str
    contender: str
    seconds: tuple[float, ...]
    device: str
    threads: int
    torch: str
    nbytes: int = 0
    flops: int = 0
    temporary_bytes: int | None = None
    read_gbps: float = math.nan


@dataclass(frozen=True)
class Row:
    """One contender of one case over all rounds; None where there is nothing to say.

    Attributes:
        p20_ms, p50_ms, p80_ms: percentiles of all measurements.
        speedup: how many times faster than the best way that is not ours, the median over the rounds; low and high
            are the smallest and the largest of them. 1 for that best way itself.
        gbps, gflops: what the case has to move and compute at least, in the median time, in 10^9 a second.
        read_gbps: how fast a plain sum read the memory in the same rounds. More than that is read from caches.
        temporary_mb: the most that PyTorch's allocator held in one call beyond what the call returns, in 10^6 bytes.
        target: what our backend is meant to reach, such as `1.8 x eager`; several are separated by `; `, as are:
        reached: the ratio (or MB) that it reached,
        verdict: and what that is: met, level, missed, or missed with the bandwidth that the target asks for.
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
    gbps: float | None = None
    gflops: float | None = None
    read_gbps: float | None = None
    temporary_mb: float | None = None
    target: str = ""
    reached: str = ""
    verdict: str = ""


def time_round(files: Sequence[Path], *, threads: int, compiled: bool) -> list[Timing]:
    """Run the cases once.

    Args:
        files: of `benchmarks/kernels/`.
        threads: of the processor.
        compiled: time torch.compile of the plain computation too.

    Raises:
        SystemExit: a case failed; its output has been shown.
    """
    return [
        timing
        for alone in (False, True)
        for timing in _run_pytest(
            files,
            OMP_NUM_THREADS=threads,
            MKL_NUM_THREADS=threads,
            OPENBLAS_NUM_THREADS=threads,
            FASTRLHF_BENCH_COMPILED=int(compiled),
            FASTRLHF_BENCH_ALONE=int(alone),
        )
    ]


def _run_pytest(files: Sequence[Path], **environment: int) -> list[Timing]:
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "round.json")
        command = [sys.executable, "-m", "pytest", *map(str, files), "--benchmark-only", "-q", "--no-header"]
        command += [f"--benchmark-json={report}", "--benchmark-max-time=0.5", "--benchmark-min-rounds=5"]
        variables = {**os.environ, **{name: str(value) for name, value in environment.items()}}
        done = subprocess.run(
            command, cwd=files[0].parents[2], env=variables, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}\nfastrlhf bench: a case failed")
        # none is written where nobody took part
        return read_report(json.loads(report.read_text())) if report.exists() else []


def read_report(report: dict) -> list[Timing]:
    """The timings of a pytest-benchmark report that holds all data."""
    return [
        Timing(
            operation=Path(found["fullname"].partition("::")[0]).stem,
            case=found["group"],
            contender=found["params"]["contender"],
            seconds=tuple(found["stats"]["data"]),
            device=found["extra_info"]["device"],
            threads=found["extra_info"]["threads"],
            torch=found["extra_info"]["torch"],
            nbytes=found["extra_info"]["bytes"],
            flops=found["extra_info"]["flops"],
            temporary_bytes=found["extra_info"]["temporary_bytes"],
            read_gbps=found["extra_info"]["read_gbps"],
        )
        for found in report["benchmarks"]
    ]


def summarise(rounds: Sequence[Sequence[Timing]], goals: Sequence[Target] = ()) -> list[Row]:
    """One row a contender and case: cases in the order in which they ran, in each the others before our backends."""
    timings: dict[tuple[str, str], dict[str, list[Timing]]] = defaultdict(lambda: defaultdict(list))
    for one_round in rounds:
        for timing in one_round:
            timings[timing.operation, timing.case][timing.contender].append(timing)
    return [
        _row(contender, case, targets.targets_of(goals, *key))
        for key, case in timings.items()
        for contender in sorted(case, key=lambda name: name in BACKENDS)
    ]


def _row(contender: str, case: dict[str, list[Timing]], goals: Sequence[Target]) -> Row:
    """The row of one contender of a case, each contender of which has a timing a round."""
    mine = case[contender]
    first, seconds = mine[0], sorted(second for timing in mine for second in timing.seconds)
    ratios = _ratios(contender, case)
    against_best = ratios[BEST]
    p50 = median(seconds)
    held = [timing.temporary_bytes for timing in mine if timing.temporary_bytes is not None]
    temporary_mb = round(max(held) / 1e6, 2) if held else None
    read_gbps = median(timing.read_gbps for timing in mine)

    def percentile(share: float) -> float:
        return round(1e3 * seconds[round(share * (len(seconds) - 1))], 5)

    ours = contender in BACKENDS and contender != "reference"
    reached = {name: median(values) for name, values in ratios.items()}
    if temporary_mb is not None:
        reached[MEMORY] = temporary_mb
    milliseconds = {name: 1e3 * p50 * ratio for name, ratio in reached.items() if name != MEMORY}
    judged = [_judged(goal, reached, first.nbytes, milliseconds, read_gbps) for goal in goals if ours]
    return Row(
        first.operation,
        first.case,
        contender,
        *(percentile(share) for share in (0.2, 0.5, 0.8)),
        *(round(ratio, 2) for ratio in (median(against_best), min(against_best), max(against_best))),
        len(seconds),
        first.device,
        first.threads,
        first.torch,
        round(first.nbytes / p50 / 1e9, 2) if first.nbytes else None,
        round(first.flops / p50 / 1e9, 2) if first.flops else None,
        None if math.isnan(read_gbps) else round(read_gbps, 1),
        temporary_mb,
        *("; ".join(texts) for texts in zip(*judged, strict=True)),
    )


def _ratios(contender: str, case: dict[str, list[Timing]]) -> dict[str, list[float]]:
    """How many times faster than each contender, and than the best that is not ours, in each round."""
    medians = {name: [median(timing.seconds) for timing in rounds] for name, rounds in case.items()}
    others = [times for name, times in medians.items() if name not in BACKENDS]
    medians[BEST] = [min(times) for times in zip(*others, strict=True)]
    return {
        name: [other / mine for other, mine in zip(times, medians[contender], strict=True)]
        for name, times in medians.items()
    }


def _judged(
    goal: Target, reached: dict[str, float], nbytes: int, milliseconds: dict[str, float], read_gbps: float
) -> tuple[str, str, str]:
    """The target, what was reached of it, and the verdict, with the limit's arithmetic where the memory is it."""
    value = reached.get(goal.against)
    verdict = targets.judge(goal, value)
    needed = targets.needed_gbps(goal, nbytes, milliseconds)
    if verdict == "missed" and needed is not None and needed > read_gbps:
        verdict = f"missed: needs {needed:.1f} GB/s, the memory gives {read_gbps:.1f}"
    return str(goal), "" if value is None else f"{value:.3g}", verdict
