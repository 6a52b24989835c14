"""Times how long TRL's trainer and ours need, on the demo's task, until the running mean reward is at the same level.

Each contender tries three learning rates in a round, and its time is that of the fastest: a rate that has not reached
the level when the fastest so far had is given up, which changes no minimum.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fastrlhf.bench.peer_targets import verdict
from fastrlhf.bench.peers import TRL
from fastrlhf.bench.ppo_vs_trl import take_turns
from fastrlhf.bench.results import Provenance, provenance, spread
from fastrlhf.bench.sides import run_side

# The likely best first: it bounds the others' time.
LEARNING_RATES = {
    "ours": (1e-3, 2e-3, 5e-4),
    "trl": (1e-5, 3e-5, 3e-6),
    "trl+peft": (3e-4, 1e-3, 1e-4),
}


@dataclass(frozen=True)
class RewardRow(Provenance):
    """One contender over all rounds.

    Attributes:
        level, window: the mean score of the last `window` steps that has to be reached.
        reached: rounds in which any of its learning rates reached it.
        train_s_median, train_s_low, train_s_high: wall-clock seconds from the beginning of `train()` until then, or
            `cap_s` where it never did.
        step_s: median of the seconds of a step at its fastest rate.
        steps: until then, the median.
        learning_rates: the fastest of each round.
        ours_faster: this contender's seconds over ours within a round: median, smallest and largest. Where a round
            ended at the cap it is a lower bound; 0 for a round in which ours did not reach the level.
    """

    mode: str
    model: str
    contender: str
    level: float
    window: int
    cap_s: float
    reached: int
    train_s_median: float
    train_s_low: float
    train_s_high: float
    step_s: float
    steps: float
    learning_rates: str
    peak_rss_mb: float
    ours_faster: float
    ours_faster_low: float
    ours_faster_high: float
    rounds: int


def time_rounds(
    model: str,
    *,
    level: float,
    window: int,
    cap_s: float,
    rounds: int,
    threads: int,
    trl: Path | None,
    most_steps: int = 2_000,
) -> list[dict[str, Any]]:
    """The fastest result of each contender for each round, by the contender's name; round n has the seed n.

    Args:
        cap_s: seconds after which a run is given up.
        most_steps: after which a run ends anyway.
        trl: the folder of TRL; None leaves it out.

    Raises:
        SideError: a side failed.
    """
    task = {"mode": "time-to-reward", "model": model, "level": level, "window": window}
    task["most_steps"] = most_steps

    def contender(name: str, seed: int) -> Callable[[], dict[str, Any]]:
        module = "fastrlhf.bench.side_ours" if name == "ours" else "fastrlhf.bench.side_trl"
        peers = [] if name == "ours" else [trl]

        def run(rate: float, cap: float) -> dict[str, Any]:
            job = {**task, "seed": seed, "learning_rate": rate, "cap_s": cap, "peft": name == "trl+peft"}
            return run_side(module, job, threads=threads, peers=peers)

        return lambda: fastest(run, LEARNING_RATES[name], cap_s)

    names = ["ours"] if trl is None else ["ours", "trl", "trl+peft"]
    return [
        take_turns({name: contender(name, seed) for name in names}, seed, "time-to-reward")
        for seed in range(1, rounds + 1)
    ]


def fastest(
    run: Callable[[float, float], dict[str, Any]], rates: Sequence[float], cap_s: float
) -> dict[str, Any]:
    """The result of the learning rate that reached the level first; of the last one if none did.

    Args:
        run: a learning rate and a cap in seconds to a side's result.
    """
    best: dict[str, Any] | None = None
    for rate in rates:
        cap = cap_s if best is None else best["reached_s"]
        result = {**run(rate, cap), "learning_rate": rate}
        reached = result["reached_s"]
        if reached is not None and reached <= cap and (best is None or reached < best["reached_s"]):
            best = result
    return best or {**result, "reached_s": None}


def summarise(
    model: str,
    rounds: Sequence[dict[str, Any]],
    *,
    level: float,
    window: int,
    cap_s: float,
    threads: int,
    where: Provenance | None = None,
) -> list[RewardRow]:
    """One row a contender, ours first."""
    where = where or provenance(threads, *([TRL.requirement] if len(rounds[0]) > 1 else []))

    def seconds(result: dict[str, Any]) -> float:
        return cap_s if result["reached_s"] is None else result["reached_s"]

    def faster(one_round: dict[str, Any], name: str) -> float:
        ours = one_round["ours"]["reached_s"]
        return 0.0 if ours is None else seconds(one_round[name]) / ours

    rows = []
    for name in sorted(rounds[0], key=lambda name: (name != "ours", name)):
        results = [one_round[name] for one_round in rounds]
        rows.append(
            RewardRow(
                "time-to-reward",
                model,
                name,
                level,
                window,
                cap_s,
                sum(result["reached_s"] is not None for result in results),
                *spread((seconds(result) for result in results), digits=1),
                round(median(result["elapsed_s"] / result["steps"] for result in results), 2),
                median(result["steps"] for result in results),
                " ".join(f"{result['learning_rate']:g}" for result in results),
                round(max(result["peak_rss_mb"] for result in results)),
                *spread(faster(one_round, name) for one_round in rounds),
                len(rounds),
                **asdict(where),
            )
        )
    return rows


def show(rows: Sequence[RewardRow]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    title = f"Seconds of training until the mean reward of {first.window} steps is {first.level:g}"
    table = Table(title=title, title_justify="left", show_lines=True)
    for column in ("contender", "reached", "seconds", "steps", "seconds a step", "learning rates", "peak MB"):
        table.add_column(column)
    for column in ("ours: times faster", "target"):
        table.add_column(column)
    for row in rows:
        figures = [f"{row.reached} of {row.rounds}"]
        figures += [f"{row.train_s_median:.0f} ({row.train_s_low:.0f} to {row.train_s_high:.0f})"]
        figures += [f"{row.steps:g}", f"{row.step_s:.3g}", row.learning_rates, f"{row.peak_rss_mb:.0f}"]
        if row.contender != "ours":
            bound = "" if row.reached == row.rounds else "at least "
            ratio = f"{row.ours_faster:.2f} ({row.ours_faster_low:.2f} to {row.ours_faster_high:.2f})"
            case = f"{row.mode} {row.model}"
            if row.ours_faster == 0:
                bound, ratio = "", "ours did not reach it"
            figures += [bound + ratio, verdict(case, row.contender, "speed", row.ours_faster)]
        table.add_row(row.contender, *figures)
    Console().print(table)


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """A bar for each row of the results file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from fastrlhf.report.theme import LIGHT

    figure, axes = pyplot.subplots(figsize=(9, 1.4 + 0.45 * len(rows)), layout="constrained")
    names = [f"{row['model']}: {row['contender']}" for row in rows]
    seconds = [float(row["train_s_median"]) for row in rows]
    spreads = [
        [float(row["train_s_median"]) - float(row["train_s_low"]) for row in rows],
        [float(row["train_s_high"]) - float(row["train_s_median"]) for row in rows],
    ]
    colors = [LIGHT.lines[0] if row["contender"] == "ours" else LIGHT.lines[1] for row in rows]
    axes.barh(names, seconds, xerr=spreads, color=colors, ecolor=LIGHT.muted)
    for position, row in enumerate(rows):
        short = "" if row["reached"] == row["rounds"] else " (not reached)"
        high = float(row["train_s_high"])
        axes.annotate(f" {seconds[position]:.0f} s{short}", (high, position), va="center", color=LIGHT.ink)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    level, window = rows[0]["level"], rows[0]["window"]
    axes.set_xlabel(f"seconds of training until the mean reward of {window} steps is {level}")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
