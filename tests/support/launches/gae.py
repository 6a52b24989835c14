"""Batches of responses as PPO scores them."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.gae import gae


def _batch(rows: int, columns: int, dtype: torch.dtype) -> None:
    numbers = torch.empty(rows, columns, dtype=dtype, device="meta")
    mask = torch.empty(rows, columns, dtype=torch.bool, device="meta")
    gae(numbers, numbers, mask, mask, 1.0, 0.95)


LAUNCHES = {
    "512 responses of 1024 f32": lambda: _batch(512, 1024, torch.float32),
    "512 responses of 1024 bf16": lambda: _batch(512, 1024, torch.bfloat16),
    "64 responses of 53 f32": lambda: _batch(64, 53, torch.float32),
}
