"""`fastrlhf bench launches`."""

from __future__ import annotations

import argparse
from pathlib import Path

from fastrlhf.bench.peer_commands import MODELS, failures, need_model, peer_folder, results_folder
from fastrlhf.bench.peers import TRL


def add_launches(questions: argparse._SubParsersAction) -> None:
    """Add `bench launches`."""
    parser = questions.add_parser(
        "launches",
        help=f"kernels, bytes and memory of a PPO step of ours and of TRL {TRL.version}'s on the simulated accelerator",
    )
    parser.add_argument(
        "--mode",
        choices=["full", "lora"],
        default="full",
        help="full: four models; lora: TRL with PEFT, ours on one base (default: %(default)s)",
    )
    parser.add_argument("--model", choices=MODELS, default="17m", help="(default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=2, help="threads of the processor (default: %(default)s)"
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"a tiny model, only to see that all runs; goes on without {TRL.requirement}",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="folder of launches.csv (default: benchmarks/results of a checkout, else this folder; with --quick a "
        "temporary one)",
    )
    parser.set_defaults(run=_launches)


def _launches(arguments: argparse.Namespace) -> int:
    if arguments.threads < 1:
        raise SystemExit("fastrlhf bench: --threads takes a whole number of at least 1")
    mode, model = arguments.mode, "tiny" if arguments.quick else arguments.model
    need_model(model)
    trl = peer_folder(TRL, arguments.quick)
    from fastrlhf.bench import launches
    from fastrlhf.bench.results import merge_csv

    with failures():
        found = launches.count(mode, model, threads=arguments.threads, trl=trl)
    rows = launches.summarise(mode, model, found, threads=arguments.threads)
    file = (arguments.out or results_folder(arguments.quick)) / "launches.csv"
    merge_csv(file, rows, ("mode", "model"))
    launches.show(rows, found)
    print(file)
    return 0
