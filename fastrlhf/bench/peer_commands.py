"""`fastrlhf bench ppo-vs-trl` and `fastrlhf bench generate`."""

from __future__ import annotations

import argparse
import tempfile
from contextlib import contextmanager
from pathlib import Path

from fastrlhf.bench.peers import CTRANSLATE2, TRL, Peer, PeerError, install
from fastrlhf.bench.sides import SideError

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"  # in a checkout
MODELS = ("17m", "smollm2")
STEP_MODES = ("full", "eos", "lora")
REWARD_MODE = "time-to-reward"
BATCHES = (1, 8, 16, 64)


def add_ppo_vs_trl(questions: argparse._SubParsersAction) -> None:
    """Add `bench ppo-vs-trl`."""
    parser = questions.add_parser(
        "ppo-vs-trl",
        help=f"a PPO step of ours beside TRL {TRL.version}'s, in turns, in processes of their own",
    )
    parser.add_argument(
        "--mode",
        choices=[*STEP_MODES, REWARD_MODE],
        default="full",
        help="full: four models, fixed lengths; eos: responses end at half of the longest; lora: TRL with PEFT, "
        "ours on one base; time-to-reward: the demo's task until the reward is reached (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        choices=MODELS,
        default="smollm2",
        help="(default: %(default)s; time-to-reward: smollm2 only)",
    )
    parser.add_argument(
        "--steps",
        type=int,
        default=3,
        help="steps timed in a process, after one that is not (default: %(default)s)",
    )
    parser.add_argument(
        "--level",
        type=float,
        default=0.45,
        help="time-to-reward: mean reward to reach (default: %(default)s)",
    )
    parser.add_argument(
        "--window",
        type=int,
        default=5,
        help="time-to-reward: steps that the mean is over (default: %(default)s)",
    )
    parser.add_argument(
        "--cap-minutes",
        type=float,
        default=15,
        help="time-to-reward: when a run is given up (default: %(default)s)",
    )
    _add_common(parser, TRL)
    parser.set_defaults(run=_ppo_vs_trl)


def add_generate(questions: argparse._SubParsersAction) -> None:
    """Add `bench generate`."""
    parser = questions.add_parser(
        "generate", help=f"our generator beside transformers' generate and CTranslate2 {CTRANSLATE2.version}"
    )
    parser.add_argument("--model", choices=MODELS, default="smollm2", help="(default: %(default)s)")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=list(BATCHES), help="sequences at a time (default: 1 8 16 64)"
    )
    parser.add_argument(
        "--precision",
        choices=["float32", "int8"],
        nargs="+",
        default=["float32", "int8"],
        help="of weights (default: both)",
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="of sampling from the whole vocabulary (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats", type=int, default=3, help="generations timed in a process (default: %(default)s)"
    )
    _add_common(parser, CTRANSLATE2)
    parser.set_defaults(run=_generate)


def _add_common(parser: argparse.ArgumentParser, peer: Peer) -> None:
    parser.add_argument(
        "--rounds", type=int, default=3, help="how often all take their turn (default: %(default)s)"
    )
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of the processor (default: %(default)s)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"one round of a tiny model, only to see that all runs; goes on without {peer.requirement}",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of the CSV file and the plot (default: benchmarks/results of a checkout, else this folder; with "
        "--quick a temporary one)",
    )


def _ppo_vs_trl(arguments: argparse.Namespace) -> int:
    _check_counts(arguments, "steps", "rounds", "threads", "window")
    if arguments.cap_minutes <= 0:
        raise SystemExit("fastrlhf bench: --cap-minutes takes a number above 0")
    if arguments.mode == REWARD_MODE and arguments.model != "smollm2":
        raise SystemExit("fastrlhf bench: time-to-reward is the demo's task, which is smollm2's")
    if arguments.quick:
        arguments.model, arguments.steps, arguments.rounds = "tiny", 1, 1
        arguments.level, arguments.window = -1.0, 1
    need_model(arguments.model)
    trl = peer_folder(TRL, arguments.quick)
    with failures():
        return (_time_to_reward if arguments.mode == REWARD_MODE else _steps)(arguments, trl)


def _steps(arguments: argparse.Namespace, trl: Path | None) -> int:
    from fastrlhf.bench import ppo_vs_trl as bench

    mode, model, threads = arguments.mode, arguments.model, arguments.threads
    rounds = bench.time_rounds(
        mode, model, steps=arguments.steps, rounds=arguments.rounds, threads=threads, trl=trl
    )
    rows = bench.summarise(mode, model, rounds, threads=threads)
    return _report(bench, rows, ("mode", "model"), arguments, "ppo_vs_trl")


def _time_to_reward(arguments: argparse.Namespace, trl: Path | None) -> int:
    from fastrlhf.bench import time_to_reward as bench

    goal = {"level": arguments.level, "window": arguments.window, "cap_s": 60 * arguments.cap_minutes}
    rounds = bench.time_rounds(
        arguments.model, **goal, rounds=arguments.rounds, threads=arguments.threads, trl=trl
    )
    rows = bench.summarise(arguments.model, rounds, **goal, threads=arguments.threads)
    return _report(bench, rows, ("model",), arguments, "time_to_reward")


def _generate(arguments: argparse.Namespace) -> int:
    _check_counts(arguments, "rounds", "threads", "repeats")
    if min(arguments.batch) < 1:
        raise SystemExit("fastrlhf bench: --batch takes whole numbers of at least 1")
    if not 0 <= arguments.temperature < float("inf"):
        raise SystemExit("fastrlhf bench: --temperature takes a number of at least 0")
    if arguments.quick:
        arguments.model, arguments.batch, arguments.repeats, arguments.rounds = "tiny", [2], 1, 1
    need_model(arguments.model)
    engine = peer_folder(CTRANSLATE2, arguments.quick)
    with failures():
        return _generations(arguments, engine)


def _generations(arguments: argparse.Namespace, engine: Path | None) -> int:
    from fastrlhf.bench import generation as bench

    model, threads = arguments.model, arguments.threads
    folder = None if engine is None else bench.converted(model, engine, threads=threads)
    rows = []
    for precision in arguments.precision:
        contenders = bench.contenders_of(precision, engine)
        for batch in arguments.batch:
            rounds = bench.time_rounds(
                model,
                precision,
                batch,
                contenders,
                temperature=arguments.temperature,
                repeats=arguments.repeats,
                rounds=arguments.rounds,
                threads=threads,
                engine=engine,
                converted=folder,
            )
            rows += bench.summarise(
                model, precision, batch, rounds, temperature=arguments.temperature, threads=threads
            )
    return _report(bench, rows, ("model", "precision", "batch"), arguments, "generate")


def need_model(model: str) -> None:
    """Convert SmolLM2 now if it never was, so that no side is timed doing it; without its package, the end."""
    if model != "smollm2":
        return
    from fastrlhf.demo.assets import MissingAssetError
    from fastrlhf.demo.model import policy_folder

    try:
        policy_folder()
    except MissingAssetError as error:
        raise SystemExit(f"fastrlhf bench: {error}") from None


@contextmanager
def failures():
    """A side that fails ends the command with its last words."""
    try:
        yield
    except SideError as error:
        raise SystemExit(f"fastrlhf bench: {error}") from None


def peer_folder(peer: Peer, quick: bool) -> Path | None:
    """The peer's folder; without it, None in a quick run and otherwise the end."""
    try:
        return install(peer)
    except PeerError as error:
        if not quick:
            raise SystemExit(f"fastrlhf bench: {error}") from None
        print(f"{error}\nonly ours runs")
        return None


def _report(bench, rows, keys: tuple[str, ...], arguments: argparse.Namespace, name: str) -> int:
    """Table, CSV and plot. The plot has all rows of the file, of earlier runs too."""
    from fastrlhf.bench.results import merge_csv

    out = arguments.out or results_folder(arguments.quick)
    lines = merge_csv(out / f"{name}.csv", rows, keys)
    bench.draw(lines, out / f"{name}.png")
    bench.show(rows)
    print(f"{out / f'{name}.csv'}, {out / f'{name}.png'}")
    return 0


def results_folder(quick: bool) -> Path:
    """Where the results go unless `--out` says."""
    if quick:
        return Path(tempfile.mkdtemp(prefix="fastrlhf-bench-quick-"))
    return BENCHMARKS / "results" if BENCHMARKS.is_dir() else Path.cwd()


def _check_counts(arguments: argparse.Namespace, *names: str) -> None:
    for name in names:
        if getattr(arguments, name) < 1:
            raise SystemExit(f"fastrlhf bench: --{name} takes a whole number of at least 1")
