"""What two runs, or two moments of one, must have in common to the bit."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

CLOCKS = ("eps", "elapsed_s", "tokens_per_second")
CLOCK_PREFIXES = ("time/", "memory/")


def snapshot(trainer: Any) -> dict[str, Any]:
    """A copy of policy, critic (if there is one), optimizer and scheduler."""
    critic = trainer.model.value_model
    return copy.deepcopy(
        {
            "policy": dict(trainer.policy_model.state_dict()),
            "critic": {} if critic is None else dict(critic.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
        }
    )


def metrics(trainer: Any) -> list[dict[str, Any]]:
    """The logged rows, without what a clock or a memory gauge says."""
    return [
        {
            name: value
            for name, value in row.items()
            if name not in CLOCKS and not name.startswith(CLOCK_PREFIXES)
        }
        for row in trainer.state.log_history
    ]


def same(first: Any, second: Any) -> bool:
    """Whether two nested values are equal to the bit (one NaN equals another)."""
    if torch.is_tensor(first) and torch.is_tensor(second):
        return (
            first.dtype == second.dtype
            and first.shape == second.shape
            and torch.equal(_bytes(first), _bytes(second))
        )
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(same, first, second))
    if isinstance(first, float) and isinstance(second, float) and math.isnan(first):
        return math.isnan(second)
    return type(first) is type(second) and first == second


def finite(values: Any) -> bool:
    """Whether every tensor of nested values is finite."""
    if torch.is_tensor(values):
        return bool(values.isfinite().all())
    if isinstance(values, dict):
        return all(map(finite, values.values()))
    return all(map(finite, values)) if isinstance(values, (list, tuple)) else True


def _bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8)
