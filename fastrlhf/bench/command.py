"""`fastrlhf bench`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastrlhf.bench.capacity_command import add_capacity
from fastrlhf.bench.launches_command import add_launches
from fastrlhf.bench.peer_commands import add_generate, add_ppo_vs_trl

CASES = Path(__file__).parents[2] / "benchmarks" / "kernels"


def add_bench(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser("bench", help="time what is here beside what people use today")
    questions = parser.add_subparsers(metavar="WHAT", required=True)
    kernels = questions.add_parser(
        "kernels", help="the operations: our backends beside PyTorch, eager and compiled"
    )
    kernels.add_argument("operations", nargs="*", metavar="OPERATION", help="only these (default: all)")
    kernels.add_argument(
        "--rounds", type=int, default=3, help="how often all take their turn (default: %(default)s)"
    )
    kernels.add_argument(
        "--threads", type=int, default=2, help="threads of the processor (default: %(default)s)"
    )
    kernels.add_argument(
        "--no-compiled", action="store_true", help="leave torch.compile out (it takes most of the time)"
    )
    kernels.add_argument(
        "--out", type=Path, default=CASES.parent / "results", help="folder of kernels.csv and kernels.png"
    )
    kernels.set_defaults(run=_kernels)
    add_ppo_vs_trl(questions)
    add_generate(questions)
    add_launches(questions)
    add_capacity(questions)


def _kernels(arguments: argparse.Namespace) -> int:
    if not CASES.is_dir():
        raise SystemExit(f"fastrlhf bench: the cases are in {CASES}, which a checkout of the repository has")
    known = sorted(path.stem for path in CASES.glob("*.py") if path.stem != "__init__")
    if unknown := [name for name in arguments.operations if name not in known]:
        raise SystemExit(f"fastrlhf bench: no cases for {', '.join(unknown)}; there are: {', '.join(known)}")
    if arguments.rounds < 1 or arguments.threads < 1:
        raise SystemExit("fastrlhf bench: --rounds and --threads take whole numbers of at least 1")
    from fastrlhf.bench import kernels, kernels_plot, kernels_view
    from fastrlhf.bench.targets import read_targets

    files = [CASES / f"{name}.py" for name in arguments.operations or known]
    rounds = [
        kernels.time_round(files, threads=arguments.threads, compiled=not arguments.no_compiled)
        for _ in range(arguments.rounds)
    ]
    rows = kernels.summarise(rounds, read_targets(CASES / "targets.csv"))
    arguments.out.mkdir(parents=True, exist_ok=True)
    kernels_view.write_csv(rows, arguments.out / "kernels.csv")
    kernels_plot.draw(kernels_view.read_csv(arguments.out / "kernels.csv"), arguments.out / "kernels.png")
    kernels_view.show(rows)
    print(f"{arguments.out / 'kernels.csv'}, {arguments.out / 'kernels.png'}")
    return 0
