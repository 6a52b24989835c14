"""Gated linear units in plain PyTorch."""

from __future__ import annotations

import torch
from torch.nn.functional import gelu, silu


def glu(gate, up, activation):
    """See `fastrlhf.kernels.glu`. Computes in float32 at least."""
    dtype = torch.promote_types(gate.dtype, torch.float32)
    x = gate.to(dtype)
    activated = silu(x) if activation == "silu" else gelu(x, approximate=approximate(activation))
    return (activated * up.to(dtype)).to(gate.dtype).contiguous()


def approximate(activation: str) -> str:
    """What PyTorch's `gelu` calls it."""
    return {"gelu": "none", "gelu_tanh": "tanh"}[activation]
