"""Minibatches of PPO: with everything that the loss can take, and with the least."""

from __future__ import annotations

from math import inf

import torch

from fastrlhf.kernels.triton.ppo_loss import ppo_loss


def _minibatch(rows: int, columns: int, dtype: torch.dtype, *, everything: bool = True) -> None:
    numbers = torch.empty(rows, columns, dtype=dtype, device="meta")
    mask = torch.empty(rows, columns, dtype=torch.bool, device="meta")
    denominators = torch.empty(2, dtype=torch.float64, device="meta")
    optional = numbers if everything else None
    ppo_loss(
        *(numbers, numbers, numbers, mask),
        *(optional, optional, optional, mask),
        *(optional, optional, optional, optional, denominators),
        *(0.2, 0.2, inf, inf, 0.2, 0.1, 0.01, 0.05, "k3"),
    )


LAUNCHES = {
    "64 responses of 512 f32": lambda: _minibatch(64, 512, torch.float32),
    "64 responses of 512 bf16": lambda: _minibatch(64, 512, torch.bfloat16),
    "64 responses of 53 f32": lambda: _minibatch(64, 53, torch.float32),
    "13 responses of 53 f32, policy alone": lambda: _minibatch(13, 53, torch.float32, everything=False),
}
