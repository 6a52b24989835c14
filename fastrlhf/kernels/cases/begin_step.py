"""Cases of `begin_step`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """Rows of rotary models, plain and scaled, and of one with embedded positions; strides that are not one."""
    embedding, positions = normal(11, 20, seed=1).to(dtype), normal(12, 20, seed=2).to(dtype)
    cos, sin = normal(12, 6, seed=3), normal(12, 6, seed=4)
    tokens, lengths = torch.tensor([3, 0, 10]), torch.tensor([0, 7, 11], dtype=torch.int32)
    table = torch.tensor([[5, 0, 0], [9, 2, 0], [1, 3, 8]], dtype=torch.int32)
    rows = tokens, lengths, table
    apart = [tensor.repeat_interleave(2, dim=-1)[..., ::2] for tensor in rows]
    return {
        "rotary": (embedding, *rows, 4, 1.0, None, cos, sin),
        "rotary, scaled": (embedding, *apart, 4, 4.123, None, cos.to(dtype), sin.to(dtype)),
        "embedded positions": (embedding, *rows, 4, 1.0, positions, None, None),
        "both": (embedding, *rows, 4, 0.3, positions, cos, sin),
    }
