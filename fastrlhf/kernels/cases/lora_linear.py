"""Cases of `lora_linear`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import linear, normal

GROUPS, RANK = 3, 5


def cases(dtype):
    """The bases of `linear`; three adapters, one of them without rows, and rows without an adapter."""
    lora_A, lora_B = normal(GROUPS, RANK, 67, seed=6).to(dtype), normal(GROUPS, 35, RANK, seed=7).to(dtype)
    scaling = torch.tensor([0.5, 1.0, 2.0])
    made = {}
    for name, (*inputs, bias) in linear.cases(dtype).items():
        rows = inputs[0].shape[0]
        bounds = torch.tensor(
            [min(rows, 1), rows // 2 + rows % 2, rows // 2 + rows % 2, rows], dtype=torch.int32
        )
        made[name] = (*inputs, lora_A, lora_B, bounds, scaling, bias)
    return made
