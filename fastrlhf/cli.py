"""The `fastrlhf` command. Each subcommand lives beside what it runs, and imports it only when it runs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from fastrlhf.bench.command import add_bench
from fastrlhf.commands.chat import add_chat
from fastrlhf.commands.report import add_report
from fastrlhf.commands.stage import add_init, add_stage
from fastrlhf.commands.stages import STAGES
from fastrlhf.demo.command import add_demo
from fastrlhf.doctor import add_doctor
from fastrlhf.generation.command import add_generate
from fastrlhf.plan import add_plan
from fastrlhf.version import __version__

SUBCOMMANDS = (add_demo, add_generate, add_chat, add_doctor, add_bench, add_plan, add_report)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="fastrlhf", description="Train language models from feedback, fast."
    )
    parser.add_argument("--version", action="version", version=f"fastrlhf {__version__}")
    subparsers = parser.add_subparsers(metavar="COMMAND", required=True)
    for add in SUBCOMMANDS:
        add(subparsers)
    for stage in STAGES.values():
        add_stage(subparsers, stage)
    add_init(subparsers, STAGES)
    arguments = parser.parse_args(argv)
    return arguments.run(arguments)


if __name__ == "__main__":
    sys.exit(main())
