"""Times PPO steps of TRL's trainer and of ours, in turns, each in a process of its own, and says what came of it.

A ratio is formed within a round, so that a slower hour of the machine touches both sides of it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean, median
from typing import Any

from fastrlhf.bench.models import SHAPES
from fastrlhf.bench.peer_targets import verdict
from fastrlhf.bench.peers import TRL
from fastrlhf.bench.results import Provenance, provenance, spread
from fastrlhf.bench.sides import run_side
from fastrlhf.bench.table import Figure, show_side_by_side

PHASES = ("rollout", "reward", "evaluate", "update")
PEERS = {"full": "trl", "eos": "trl", "lora": "trl+peft"}


@dataclass(frozen=True)
class StepRow(Provenance):
    """One contender of one mode and model over all rounds.

    Attributes:
        step_s_p20, step_s_p50, step_s_p80: percentiles of the seconds of a whole step, from the end of one to the end
            of the next (data, logging and collection of garbage included), the first of each process left out.
        rollout_s, reward_s, evaluate_s, update_s: medians of the seconds of a step's phases.
        tokens_per_second: response tokens up to the stop token, over the seconds of a whole step.
        response_tokens: their mean number in a response.
        peak_rss_mb: the process's largest resident memory (10^6 bytes), libraries included, the largest of the rounds.
        ours_faster: this contender's median step over ours within a round: median, smallest and largest of the rounds.
        ours_memory: our peak memory over this contender's within a round, likewise.
    """

    mode: str
    model: str
    contender: str
    step_s_p20: float
    step_s_p50: float
    step_s_p80: float
    rollout_s: float
    reward_s: float
    evaluate_s: float
    update_s: float
    tokens_per_second: float
    response_tokens: float
    peak_rss_mb: float
    ours_faster: float
    ours_faster_low: float
    ours_faster_high: float
    ours_memory: float
    ours_memory_low: float
    ours_memory_high: float
    rounds: int
    steps: int


def time_rounds(
    mode: str, model: str, *, steps: int, rounds: int, threads: int, trl: Path | None
) -> list[dict[str, Any]]:
    """A result of each contender for each round, by the contender's name; round n has the seed n.

    Args:
        mode: "full", "eos" or "lora".
        model: of `models.SHAPES`.
        steps: that are timed in a process, after a first one that is not.
        trl: the folder of TRL; None leaves it out.

    Raises:
        SideError: a side failed.
    """
    results = []
    for number in range(1, rounds + 1):
        job = {"mode": mode, "model": model, "steps": steps, "seed": number}
        sides = {"ours": partial(run_side, "fastrlhf.bench.side_ours", job, threads=threads)}
        if trl is not None:
            sides[PEERS[mode]] = partial(
                run_side, "fastrlhf.bench.side_trl", job, threads=threads, peers=[trl]
            )
        results.append(take_turns(sides, number, f"{mode} {model}"))
    return results


def take_turns(sides: Mapping[str, Callable[[], Any]], number: int, what: str) -> dict[str, Any]:
    """Run every side once; the one that goes first changes from round to round."""
    names = list(sides)
    first = (number - 1) % len(names)
    results = {}
    for name in names[first:] + names[:first]:
        print(f"{what}: round {number}, {name}", file=sys.stderr, flush=True)
        results[name] = sides[name]()
    return results


def summarise(
    mode: str, model: str, rounds: Sequence[dict[str, Any]], where: Provenance | None = None, threads: int = 2
) -> list[StepRow]:
    """One row a contender, ours first."""
    where = where or provenance(threads, *([TRL.requirement] if len(rounds[0]) > 1 else []))
    contenders = sorted(rounds[0], key=lambda name: name != "ours")
    return [_row(mode, model, name, rounds, where) for name in contenders]


def _row(mode: str, model: str, name: str, rounds: Sequence[dict[str, Any]], where: Provenance) -> StepRow:
    results = [one_round[name] for one_round in rounds]
    steps = sorted(second for result in results for second in result["steps_s"])
    phases = [phases for result in results for phases in result["phases_s"]]
    rates = [
        SHAPES[model].rows * length / second
        for result in results
        for length, second in zip(result["lengths"], result["steps_s"], strict=True)
    ]

    def percentile(share: float) -> float:
        return round(steps[round(share * (len(steps) - 1))], 4)

    faster = spread(median(r[name]["steps_s"]) / median(r["ours"]["steps_s"]) for r in rounds)
    memory = spread(r["ours"]["peak_rss_mb"] / r[name]["peak_rss_mb"] for r in rounds)
    return StepRow(
        mode,
        model,
        name,
        percentile(0.2),
        percentile(0.5),
        percentile(0.8),
        *(round(median(phase[key] for phase in phases), 4) for key in PHASES),
        round(median(rates), 2),
        round(mean(length for result in results for length in result["lengths"]), 2),
        round(max(result["peak_rss_mb"] for result in results)),
        *faster,
        *memory,
        len(rounds),
        len(results[0]["steps_s"]),
        **asdict(where),
    )


def show(rows: Sequence[StepRow]) -> None:
    """Print the table."""
    case = f"{rows[0].mode} {rows[0].model}"
    faster, memory = [], []
    for row in rows[1:]:
        ratio = f"{row.ours_faster:.2f} ({row.ours_faster_low:.2f} to {row.ours_faster_high:.2f})"
        share = f"{row.ours_memory:.2f} ({row.ours_memory_low:.2f} to {row.ours_memory_high:.2f})"
        faster.append((ratio, verdict(case, row.contender, "speed", row.ours_faster)))
        memory.append((share, verdict(case, row.contender, "memory", row.ours_memory)))
    figures = [Figure("a step, s", [f"{row.step_s_p50:.3g}" for row in rows], faster)]
    for phase in PHASES:
        figures.append(Figure(f"  {phase}, s", [f"{getattr(row, f'{phase}_s'):.3g}" for row in rows]))
    figures += [
        Figure("response tokens a second", [f"{row.tokens_per_second:.1f}" for row in rows]),
        Figure("tokens a response", [f"{row.response_tokens:.1f}" for row in rows]),
        Figure("peak memory, MB", [f"{row.peak_rss_mb:,.0f}" for row in rows], memory),
    ]
    title = f"PPO steps, {case}: medians of {rows[0].rounds} round(s)"
    show_side_by_side(title, [row.contender for row in rows], "ours, of {}", figures)


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """A bar for each row of the results file, its step in phases, and beside it the memory."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from fastrlhf.report.theme import LIGHT

    names = [f"{row['mode']} {row['model']}: {row['contender']}" for row in rows]
    figure, (steps, memory) = pyplot.subplots(
        1, 2, figsize=(12, 1.6 + 0.4 * len(rows)), width_ratios=(2, 1), sharey=True, layout="constrained"
    )
    left = [0.0] * len(rows)
    for phase, color in zip(PHASES, LIGHT.lines, strict=True):
        seconds = [float(row[f"{phase}_s"]) for row in rows]
        steps.barh(names, seconds, left=left, color=color, label=phase)
        left = [one + other for one, other in zip(left, seconds, strict=True)]
    colors = [LIGHT.lines[0] if row["contender"] == "ours" else LIGHT.muted for row in rows]
    memory.barh(names, [float(row["peak_rss_mb"]) for row in rows], color=colors)
    for position, row in enumerate(rows):
        if row["contender"] != "ours":
            text = f" ours {float(row['ours_faster']):.2f} times faster"
            steps.annotate(text, (left[position], position), va="center", color=LIGHT.ink)
            text = f" ours {float(row['ours_memory']):.2f} of it"
            memory.annotate(text, (float(row["peak_rss_mb"]), position), va="center", color=LIGHT.ink)
    steps.invert_yaxis()
    steps.margins(x=0.3)
    memory.margins(x=0.3)
    steps.set_xlabel(f"seconds of a PPO step by phase ({rows[0]['threads']} threads)")
    memory.set_xlabel("peak resident memory (MB)")
    steps.legend(loc="lower right", frameon=False)
    for axes in (steps, memory):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
