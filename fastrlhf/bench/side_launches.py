"""A side of `fastrlhf bench launches`: `python -m fastrlhf.bench.side_launches JOB RESULT`, TRL's with TRL on the path.

Either trainer takes steps on the simulated accelerator, whose books are read after the last one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from accelerate import PartialState
from transformers import TrainerCallback, TrainingArguments

from fastrlhf.bench.sides import serve
from fastrlhf.device import simulated
from fastrlhf.device.ledger import Ledger

# Modules with a PPOConfig, and `step_trainer(job, callbacks, config)`.
SIDES = {"ours": "fastrlhf.bench.side_ours", "trl": "fastrlhf.bench.side_trl"}


def measure(job: dict[str, Any]) -> dict[str, Any]:
    """Train as the job says, and return what `Books` has of the last step."""
    side = import_module(SIDES[job["side"]])
    with simulated.registered(poison=False) as device:
        books = Books(device)
        side.step_trainer(job, [books], on_sim(side.PPOConfig)).train()
        return books.step


def on_sim(config: type[TrainingArguments]) -> type[TrainingArguments]:
    """A config whose device is sim:0, for `transformers` and `accelerate` too."""

    class OnSim(config):
        @property
        def device(self) -> torch.device:
            _ = super().device  # which sets up accelerate's state
            PartialState().device = torch.device("sim", 0)
            return PartialState().device

    return OnSim


class Books(TrainerCallback):
    """What each step launched, moved and held at most.

    Attributes:
        step: of the last step: "launches" by kernel, "read", "written" and "peak" in bytes, "flops", and "waits" of the
            host by reason.
    """

    def __init__(self, device: Ledger):
        self.device = device
        self.step: dict[str, Any] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        self.device.reset()

    def on_step_end(self, args, state, control, **kwargs):
        device = self.device
        self.step = {
            "launches": dict(device.launches.most_common()),
            "waits": dict(device.waits.most_common()),
            **device.cost._asdict(),
            "peak": device.peak,
        }
        device.reset()


if __name__ == "__main__":
    serve(measure)
