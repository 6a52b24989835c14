"""A step on chunks of parameters, with everything on and with nothing."""

from __future__ import annotations

from math import inf

import torch

from fastrlhf.kernels.triton.adamw import adamw


def _step(size: int, gradients: torch.dtype, *, everything: bool) -> None:
    chunk, scalar = torch.empty(size, device="meta"), torch.empty((), device="meta")
    copy = torch.empty(size, dtype=torch.bfloat16, device="meta") if everything else None
    scalars = [scalar if everything else None] * 4
    numbers = (1e-5, 1, 1.0, 1.0 if everything else inf, 0.9, 0.999, 1e-8, 0.0)
    adamw(chunk, torch.empty(size, dtype=gradients, device="meta"), chunk, chunk, copy, *scalars, *numbers)


LAUNCHES = {
    "chunk of 64 M bf16, everything": lambda: _step(64 << 20, torch.bfloat16, everything=True),
    "chunk of 64 M f32": lambda: _step(64 << 20, torch.float32, everything=False),
    "LoRA of 2 M f32": lambda: _step(2 << 20, torch.float32, everything=True),
    "odd chunk f32": lambda: _step(1_000_003, torch.float32, everything=False),
}
