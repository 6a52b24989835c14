"""Times our generator beside transformers' `generate` and CTranslate2, in turns, each in a process of its own."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from filelock import FileLock  # torch depends on it

from fastrlhf.bench.models import SHAPES
from fastrlhf.bench.peer_targets import verdict
from fastrlhf.bench.peers import CTRANSLATE2
from fastrlhf.bench.ppo_vs_trl import take_turns
from fastrlhf.bench.results import Provenance, provenance, spread
from fastrlhf.bench.sides import run_side
from fastrlhf.cache import cache_dir

PRECISIONS = ("float32", "int8")


@dataclass(frozen=True)
class GenerationRow(Provenance):
    """One contender at one precision and batch over all rounds.

    Attributes:
        prompt, response: tokens of each; every response has its full length.
        temperature: of sampling from the whole vocabulary; 0 is greedy.
        generate_s_p20, generate_s_p50, generate_s_p80: percentiles of the seconds of one generation of the batch,
            prefill and sampling included.
        tokens_per_second: response tokens of the batch over the median.
        peak_rss_mb: the process's largest resident memory (10^6 bytes), libraries included, the largest of the rounds.
        ours_faster: this contender's median seconds over ours of the same precision within a round: median, smallest
            and largest of the rounds.
    """

    model: str
    precision: str
    batch: int
    contender: str
    prompt: int
    response: int
    temperature: float
    generate_s_p20: float
    generate_s_p50: float
    generate_s_p80: float
    tokens_per_second: float
    peak_rss_mb: float
    ours_faster: float
    ours_faster_low: float
    ours_faster_high: float
    rounds: int
    repeats: int


def converted(model: str, engine: Path, *, threads: int) -> Path:
    """The folder of the model in CTranslate2's format, in the cache; converted now if no earlier call has.

    Args:
        model: of `models.SHAPES`.
        engine: the folder of CTranslate2.

    Raises:
        SideError: the conversion failed.
    """
    folder = cache_dir() / f"ctranslate2-{CTRANSLATE2.version}-{model}-v1"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f"{folder.name}.lock")):
        if folder.is_dir():
            return folder
        print(f"converting {model} for CTranslate2 once, into {folder}", file=sys.stderr, flush=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
        try:
            job = {"model": model, "into": str(temporary)}
            run_side("fastrlhf.bench.side_convert", job, threads=threads, peers=[engine])
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return folder


def contenders_of(precision: str, engine: Path | None) -> list[str]:
    """Who takes part: transformers has no int8 weights on a CPU of its own, and CTranslate2 needs its folder."""
    names = ["ours", "transformers"] if precision == "float32" else ["ours"]
    return names + (["ctranslate2"] if engine is not None else [])


def time_rounds(
    model: str,
    precision: str,
    batch: int,
    contenders: Sequence[str],
    *,
    temperature: float,
    repeats: int,
    rounds: int,
    threads: int,
    engine: Path | None,
    converted: Path | None,
) -> list[dict[str, Any]]:
    """A result of each contender for each round, by the contender's name.

    Args:
        engine, converted: the folders of CTranslate2 and of the model in its format, where it takes part.

    Raises:
        SideError: a contender failed.
    """
    job = {"model": model, "precision": precision, "batch": batch, "converted": str(converted)}
    job |= {"temperature": temperature, "repeats": repeats}

    def side(name: str):
        peers = [engine] if name == "ctranslate2" else []
        one = {**job, "contender": name}
        return lambda: run_side("fastrlhf.bench.side_generate", one, threads=threads, peers=peers)

    sides = {name: side(name) for name in contenders}
    what = f"generate {precision} batch {batch}"
    return [take_turns(sides, number, what) for number in range(1, rounds + 1)]


def summarise(
    model: str,
    precision: str,
    batch: int,
    rounds: Sequence[dict[str, Any]],
    *,
    temperature: float,
    threads: int,
    where: Provenance | None = None,
) -> list[GenerationRow]:
    """One row a contender, ours first."""
    peer = [CTRANSLATE2.requirement] if "ctranslate2" in rounds[0] else []
    where = where or provenance(threads, *peer)
    shape, rows = SHAPES[model], []
    for name in sorted(rounds[0], key=lambda name: (name != "ours", name)):
        results = [one_round[name] for one_round in rounds]
        seconds = sorted(second for result in results for second in result["seconds"])
        p20, p50, p80 = (seconds[round(share * (len(seconds) - 1))] for share in (0.2, 0.5, 0.8))
        faster = spread(median(r[name]["seconds"]) / median(r["ours"]["seconds"]) for r in rounds)
        rows.append(
            GenerationRow(
                model,
                precision,
                batch,
                name,
                shape.prompt,
                shape.response,
                temperature,
                round(p20, 4),
                round(p50, 4),
                round(p80, 4),
                round(results[0]["tokens"] / p50, 1),
                round(max(result["peak_rss_mb"] for result in results)),
                *faster,
                len(rounds),
                len(results[0]["seconds"]),
                **asdict(where),
            )
        )
    return rows


def show(rows: Sequence[GenerationRow]) -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    title = f"Generation, {rows[0].model}, {rows[0].prompt} + {rows[0].response} tokens"
    table = Table(title=title, title_justify="left")
    for column in ("case", "contender", "seconds", "tokens/s", "peak MB", "ours: times faster", "target"):
        table.add_column(column)
    for row in rows:
        case = f"{row.precision} batch {row.batch}"
        figures = [f"{row.generate_s_p50:.3g}", f"{row.tokens_per_second:.1f}", f"{row.peak_rss_mb:.0f}"]
        if row.contender != "ours":
            ratio = f"{row.ours_faster:.2f} ({row.ours_faster_low:.2f} to {row.ours_faster_high:.2f})"
            figures += [
                ratio,
                verdict(case, row.contender, "speed", row.ours_faster),
            ]
        table.add_row(case, row.contender, *figures)
    Console().print(table)


def draw(rows: Sequence[dict[str, str]], path: Path) -> None:
    """Tokens a second against the batch, a line for each contender and precision in the results file."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from fastrlhf.report.theme import LIGHT

    contenders = ("ours", "transformers", "ctranslate2")
    figure, axes = pyplot.subplots(figsize=(8, 4.5), layout="constrained")
    for model in sorted({row["model"] for row in rows}):
        for name, color in zip(contenders, LIGHT.lines, strict=False):
            for precision, style in zip(PRECISIONS, ("-", "--"), strict=True):
                wanted = (model, name, precision)
                some = [row for row in rows if (row["model"], row["contender"], row["precision"]) == wanted]
                some.sort(key=lambda row: int(row["batch"]))
                if some:
                    axes.plot(
                        [int(row["batch"]) for row in some],
                        [float(row["tokens_per_second"]) for row in some],
                        style,
                        color=color,
                        marker="o",
                        label=f"{model}: {name}, {precision}",
                    )
    batches = sorted({int(row["batch"]) for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(batches, [str(batch) for batch in batches])
    axes.set_xlabel(f"sequences in a batch ({rows[0]['threads']} threads)")
    axes.set_ylabel("response tokens a second")
    axes.grid(color=LIGHT.grid)
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
