"""`fastrlhf <trainer> CONFIG.yaml` and `fastrlhf init <trainer>`, for every trainer that says what it needs."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fastrlhf.commands.options import OptionError, check_names, fields_of, read_flags, read_yaml, typed

INIT = "init"
METRICS = "metrics.jsonl"


@dataclasses.dataclass(frozen=True)
class Stage:
    """A trainer as a command.

    Attributes:
        name: the command's.
        help: one line about it.
        config: imports and returns the class of its configuration.
        options: what it takes beside the configuration's fields, and the help of each.
        example: the options that `init` sets.
        build: makes the trainer of a configuration and those options.
    """

    name: str
    help: str
    config: Callable[[], type]
    options: Mapping[str, str]
    example: Mapping[str, Any]
    build: Callable[[Any, Mapping[str, Any]], Any]


def add_stage(subparsers: argparse._SubParsersAction, stage: Stage) -> None:
    """Add a trainer's subcommand."""
    parser = subparsers.add_parser(
        stage.name,
        help=stage.help,
        usage=f"fastrlhf {stage.name} CONFIG.yaml [--resume auto|FOLDER] [--NAME VALUE ...]",
        epilog=f"`fastrlhf {INIT} {stage.name}` prints a configuration with every option.",
    )
    parser.add_argument("config", type=Path, metavar="CONFIG.yaml")
    parser.add_argument(
        "flags", nargs=argparse.REMAINDER, metavar="--NAME VALUE", help="override the file's options"
    )
    parser.set_defaults(run=lambda arguments: run_stage(stage, arguments.config, arguments.flags))


def add_init(subparsers: argparse._SubParsersAction, stages: Mapping[str, Stage]) -> None:
    """Add the subcommand that prints configurations."""
    parser = subparsers.add_parser(INIT, help="print a configuration with every option, to be edited")
    parser.add_argument("stage", choices=list(stages))
    parser.set_defaults(run=lambda arguments: _print_example(stages[arguments.stage]))


def run_stage(stage: Stage, path: Path, flags: list[str]) -> int:
    """Train as a file and flags say; returns the exit status.

    Raises:
        SystemExit: the options cannot be meant; the message says why.
    """
    try:
        options = read_yaml(path) | read_flags(flags)
        resume = options.pop("resume", None)
        config = stage.config()
        names = [item.name for item in fields_of(config)]
        check_names(options, [*stage.options, *names, "resume"])
        given = {name: options[name] for name in stage.options if name in options}
        args = config(**typed(config, {name: options[name] for name in names if name in options}))
        trainer = stage.build(args, given)
    except (OptionError, ValueError, TypeError, OSError) as error:
        raise SystemExit(f"fastrlhf {stage.name}: {error}") from None
    return _train(stage, trainer, given, resume)


def _train(stage: Stage, trainer: Any, given: dict[str, Any], resume: Any) -> int:
    from fastrlhf.commands.record import write_record
    from fastrlhf.ppo.rewards import RewardError
    from fastrlhf.report.callback import JsonlCallback
    from fastrlhf.trainers.checkpoint import CheckpointError, checkpoints, clear_leftovers
    from fastrlhf.trainers.guard import TrainingStopped

    folder = Path(trainer.args.output_dir)
    write_record(folder, given, trainer.args)
    trainer.add_callback(JsonlCallback(folder / METRICS))
    if resume == "auto":
        clear_leftovers(folder)
        resume = any(checkpoints(folder))
    try:
        trainer.train(resume_from_checkpoint=resume or None)
        trainer.save_model()
    except (CheckpointError, TrainingStopped, RewardError, FloatingPointError) as error:
        raise SystemExit(f"fastrlhf {stage.name}: {error}") from None
    print(f"{folder}: the model, {METRICS}, and what made them", file=sys.stderr)
    return 0


def example(stage: Stage) -> str:
    """A configuration with every option: those of the example set, the others as comments with their defaults."""
    import yaml

    def line(name: str, value: Any, help: str, is_set: bool) -> str:
        text = yaml.safe_dump({name: value}, default_flow_style=True, width=10_000).strip()[1:-1]
        return f"{'' if is_set else '# '}{text}" + (f"  # {' '.join(help.split())}" if help else "")

    config = stage.config()
    lines = [f"# fastrlhf {stage.name} THIS_FILE.yaml [--NAME VALUE ...]"]
    for name, help in stage.options.items():
        lines.append(line(name, stage.example.get(name), help, name in stage.example))
    lines.append("")
    for item in fields_of(config):
        default = item.default if item.default is not dataclasses.MISSING else None
        if item.default_factory is not dataclasses.MISSING:
            default = item.default_factory()
        if not isinstance(default, (str, int, float, bool, list, dict, type(None))):
            default = str(default)
        default = getattr(default, "value", default)  # an enum of texts
        value = stage.example.get(item.name, default)
        lines.append(line(item.name, value, item.metadata.get("help", ""), item.name in stage.example))
    return "\n".join(lines) + "\n"


def _print_example(stage: Stage) -> int:
    print(example(stage), end="")
    return 0
