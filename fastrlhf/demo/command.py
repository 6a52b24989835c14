"""`fastrlhf demo`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_demo(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand."""
    parser = subparsers.add_parser(
        "demo", help="train a real model from a real reward, and draw what happened"
    )
    parser.add_argument(
        "--steps", type=_positive, help="PPO steps (default: what three seeds need to succeed)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="directory of the run (default: %(default)s)"
    )
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.set_defaults(run=_run)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def _run(arguments: argparse.Namespace) -> int:
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "fastrlhf demo: --device cuda, but torch finds no CUDA device; use --device cpu or auto"
        )
    import fastrlhf.device.without_triton  # isort: skip # noqa: F401 - before transformers
    from fastrlhf.demo.assets import MissingAssetError
    from fastrlhf.demo.run import run_demo

    try:
        summary = run_demo(arguments.out, steps=arguments.steps, seed=arguments.seed, device=arguments.device)
    except MissingAssetError as error:
        raise SystemExit(f"fastrlhf demo: {error}") from error
    _show(summary, arguments.out)
    return 0


def _show(summary: dict, out: Path) -> None:
    """The run's figures in a few lines."""
    before, after = summary["before"], summary["after"]
    lines = [
        f"reward    {before['reward']:+.2f} before, {after['reward']:+.2f} over the last quarter of the steps",
        f"judge     {before['judge']:.0%} positive before, {after['judge']:.0%} after"
        f" ({len(summary['samples'])} held-out prompts)",
        f"KL        {summary['kl_final']:.1f} nats a sequence (limit {summary['kl_limit']:g})",
        f"time      {summary['wall_s'] / 60:.1f} minutes, peak resident memory {summary['peak_rss_mb'] / 1000:.2f} GB",
        f"report    {out / 'report.html'}",
    ]
    print("\n".join(lines))
