"""Holds a trained trainer, or its signature, against what a process of TRL's wrote."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import torch
from parity_cases import make_models
from trl_process import child_environment, install_trl

from fastrlhf.bench.peers import TRL_NOW

TOLERANCE = 1e-5
CLOCKS = {"total_flos", "epoch", "step"}


def run_worker(name: str, root: Path) -> Path:
    """Make the models in `root`, run a worker on it with TRL 1.16, and return it."""
    folder = install_trl(TRL_NOW)
    make_models(root / "models")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name(name)), str(root)],
        env=child_environment(folder),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"TRL's side failed:\n{done.stderr[-4000:]}"
    return root


def assert_same_log(
    ours: list[dict], theirs: list[dict], leave_out: Collection[str], record: Callable[[str, Any], None]
) -> None:
    """All that TRL logs is logged here, and equal but for clocks and what is left out."""
    assert len(ours) == len(theirs)
    differing = [
        f"entry {at}, {name}: {here.get(name)} here, {value} in TRL"
        for at, (here, there) in enumerate(zip(ours, theirs, strict=True))
        for name, value in there.items()
        if not (name.endswith(("runtime", "per_second")) or name in CLOCKS or name in leave_out)
        and not abs(here.get(name, float("nan")) - value) <= TOLERANCE * max(1, abs(value))
    ]
    assert not differing, "\n".join(differing)
    losses = [
        (here["loss"], there["loss"]) for here, there in zip(ours, theirs, strict=True) if "loss" in there
    ]
    record("loss_deviation", max(abs(here - there) for here, there in losses))


def assert_same_weights(
    actual: dict[str, torch.Tensor],
    expected: dict[str, torch.Tensor],
    before: dict[str, torch.Tensor],
    record: Callable[[str, Any], None],
) -> None:
    """The trained weights are TRL's, and moved much further than the two differ."""
    assert actual.keys() == expected.keys()
    deviation = max(float((actual[name] - expected[name]).abs().max().detach()) for name in expected)
    moved = max(float((before[name] - expected[name]).abs().max().detach()) for name in expected)
    record("deviation", deviation)
    assert moved > 10 * TOLERANCE, f"the weights moved by {moved}: nothing was compared"
    assert deviation <= TOLERANCE, f"a weight differs by {deviation}, having moved by {moved}"


def assert_same_signature(ours: dict, theirs: dict) -> None:
    """The same parameters in the same order, and TRL's fields with their defaults, which `__post_init__` may change."""
    assert ours["trainer"] == theirs["trainer"]
    mine = dict(ours["fields"])
    differing = {
        name: (mine.get(name, "missing"), value)
        for name, value in theirs["fields"]
        if mine.get(name, "missing") != value
    }
    assert not differing
    made = ours["values"]
    assert {name: made.get(name, "missing") for name in theirs["values"]} == theirs["values"]
