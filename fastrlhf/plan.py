"""`fastrlhf plan`."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from fastrlhf.memory.sizes import format_size, parse_size

if TYPE_CHECKING:
    from fastrlhf.device.profiles import Profile
    from fastrlhf.ppo.dry_run import Job
    from fastrlhf.ppo.plan import Way

DTYPES = ("float32", "bfloat16")
KINDS = ("parameters", "gradients", "optimizer", "activations")


def add_plan(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "plan",
        help="what a PPO run will hold, move and take on a card, without the card and without the weights",
        description="Runs a step of the trainer without values on a simulated card, and says what it held where.",
    )
    parser.add_argument(
        "--model",
        required=True,
        help="a folder with a config.json (weights are not read), or a name on the hub",
    )
    parser.add_argument(
        "--gpu", required=True, help="4090, a100-40, a100-80, h100, or a size such as 16GB (no seconds then)"
    )
    parser.add_argument("--batch", type=int, default=64, help="sequences of a step (default: %(default)s)")
    parser.add_argument(
        "--micro-batch", type=int, default=8, help="sequences at a time (default: %(default)s)"
    )
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument(
        "--response", type=int, default=128, help="tokens of a response (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, default=4, help="num_ppo_epochs (default: %(default)s)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--full", action="store_true", help="train all of four models (the default)")
    mode.add_argument(
        "--lora", nargs="?", type=int, const=16, metavar="RANK", help="train adapters on one base (rank 16)"
    )
    parser.add_argument(
        "--base",
        choices=["nf4", "int8"],
        help="with --lora: format of the base's linear maps (default: as the rest)",
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default="bfloat16", help="of the weights (default: %(default)s)"
    )
    parser.add_argument(
        "--device-memory", help="as PPOConfig's; by default only where it has to be, and what fits"
    )
    parser.add_argument(
        "--largest", action="store_true", help="look for the largest model that would fit, too (minutes)"
    )
    parser.set_defaults(run=_plan)


def _plan(arguments: argparse.Namespace) -> int:
    from fastrlhf.ppo import plan

    profile, capacity = _card(arguments.gpu)
    job = _job(arguments)
    tried = plan.chosen(job, capacity, profile)
    print(describe(arguments.model, job, arguments.gpu, capacity))
    for way in tried:
        print(f"\n{way.name}: {verdict(way, capacity)}")
        if way.books is not None:
            print(table(way, arguments.epochs, profile))
    if arguments.largest:
        found = plan.largest(job, capacity)
        print("\n" + ("No model of this shape fits." if found is None else _of_largest(*found)))
    return 0 if tried[-1].fits(capacity) else 1


def describe(model: str, job: Job, gpu: str, capacity: float) -> str:
    """What is planned, in a line or two."""
    trains = "all of four models" if job.lora_rank is None else f"LoRA of rank {job.lora_rank} on one base"
    trains += f" in {job.base}" if job.base else ""
    return (
        f"{model} on {gpu} ({format_size(capacity)}), {trains}, weights in {str(job.dtype).removeprefix('torch.')}\n"
        f"{job.rows} sequences of {job.prompt} + {job.response} tokens, {job.micro_batch} at a time"
    )


def verdict(way: Way, capacity: float) -> str:
    """Whether a way fits, and by how much."""
    if way.books is None:
        return f"does not run: {way.error}"
    word = "fits" if way.fits(capacity) else "does not fit"
    held = f"{format_size(way.books.peak)} of {format_size(capacity)}"
    host = f", {format_size(way.books.host)} in the host's memory" if way.books.host else ""
    return f"{word}: {held} on the device{host}"


def table(way: Way, epochs: int, profile: Profile | None) -> str:
    """Two tables: what each phase holds at its peak, and what it moves and takes."""
    lines = [f"  {'phase':<9}{'peak':>8}" + "".join(f"{kind:>12}" for kind in (*KINDS, "other"))]
    for name, phase in way.books.phases.items():
        sizes = [phase.kinds[kind] for kind in KINDS]
        sizes += [phase.peak - sum(sizes)]
        lines.append(
            f"  {name:<9}{format_size(phase.peak):>8}" + "".join(f"{format_size(size):>12}" for size in sizes)
        )
    timed = profile is not None
    lines.append(
        f"\n  {'phase':<10}{'to device':>12}{'to host':>12}" + (f"{'seconds':>10}{'computing':>11}" * timed)
    )
    total = 0.0
    for name, phase in way.books.phases.items():
        times = way.times * (epochs / way.job.epochs if name == "update" else 1)
        total += times * phase.seconds
        line = (
            f"  {name:<10}{format_size(times * phase.to_device):>12}{format_size(times * phase.to_host):>12}"
        )
        if timed:
            line += (
                f"{times * phase.seconds:>10.2f}{phase.busy['compute'] / max(phase.seconds, 1e-12):>11.0%}"
            )
        lines.append(line)
    if timed:
        lines.append(f"  {'step':<10}{'':>24}{total:>10.2f}")
    return "\n".join(lines)


def _of_largest(config, way: Way) -> str:
    from fastrlhf.ppo.plan import count_parameters

    size = f"{count_parameters(config) / 1e9:.3g} billion parameters"
    shape = f"{config.num_hidden_layers} layers of {config.hidden_size}"
    return f"The largest of its shape: {size} ({shape}), with {way.name}"


def _card(name: str) -> tuple[Profile | None, float]:
    from fastrlhf.device.profiles import PROFILES

    if name in PROFILES:
        return PROFILES[name], PROFILES[name].capacity
    try:
        return None, parse_size("--gpu", name)
    except ValueError:
        raise SystemExit(
            f"fastrlhf plan: --gpu is {name!r}, expected {', '.join(PROFILES)} or a size such as 16GB"
        ) from None


def _job(arguments: argparse.Namespace) -> Job:
    import torch
    from transformers import AutoConfig

    from fastrlhf.ppo.dry_run import Job

    for name in ("batch", "micro_batch", "prompt", "response", "epochs"):
        if getattr(arguments, name) < 1:
            raise SystemExit(f"fastrlhf plan: --{name.replace('_', '-')} takes a whole number of at least 1")
    if arguments.base and arguments.lora is None:
        raise SystemExit("fastrlhf plan: --base is a frozen base's: it needs --lora")
    try:
        config = AutoConfig.from_pretrained(arguments.model)
    except (OSError, ValueError) as error:
        raise SystemExit(
            f"fastrlhf plan: {arguments.model} has no config that can be read: {error}"
        ) from None
    micro_batch = min(arguments.micro_batch, arguments.batch)
    memory = arguments.device_memory
    return Job(
        config,
        arguments.batch // micro_batch * micro_batch,
        arguments.prompt,
        arguments.response,
        micro_batch=micro_batch,
        lora_rank=arguments.lora,
        base=arguments.base,
        dtype=getattr(torch, arguments.dtype),
        bf16=arguments.dtype == "float32",
        device_memory=None if memory is None else parse_size("--device-memory", memory),
    )
