"""Cases of `lora_linear_backward`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.cases.linear import bases
from fastrlhf.kernels.cases.lora_linear import adapters


def cases(dtype):
    """A base of each kind; a quantised one has no gradient."""
    grad, x = normal(40, 37, seed=3).to(dtype), normal(40, 70).to(dtype)
    hidden = normal(40, 5, seed=6).to(dtype)
    inside = (torch.arange(40) >= 2) & (torch.arange(40) < 37)
    hidden = torch.where(inside[:, None], hidden, 0)
    return {
        kind: (grad, x, hidden, *base, *adapters(dtype), True, base[1] is None, True)
        for kind, base in bases(37, 70, dtype).items()
    }
