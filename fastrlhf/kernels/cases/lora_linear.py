"""Cases of `lora_linear`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.cases.linear import bases


def adapters(dtype):
    """Three of rank 5, one of them without rows, and rows without one at either end of 40."""
    offsets = torch.tensor([2, 20, 20, 37], dtype=torch.int32)
    lora_A, lora_B = normal(3, 5, 70, seed=4, scale=0.1).to(dtype), normal(3, 37, 5, seed=5).to(dtype)
    return lora_A, lora_B, offsets, torch.tensor([0.5, 1.0, 2.0])


def cases(dtype):
    """A base of each kind, and once adapters in float32 on whatever dtype the rows have."""
    x, bias = normal(40, 70).to(dtype), normal(37, seed=2).to(dtype)
    named = {kind: (x, *base, *adapters(dtype), bias) for kind, base in bases(37, 70, dtype).items()}
    wide = torch.promote_types(dtype, torch.float32)
    return named | {"wide adapters": (x, *bases(37, 70, dtype)["nf4"], *adapters(wide), None)}
