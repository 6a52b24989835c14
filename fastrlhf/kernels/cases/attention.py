"""Cases of `attention`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """Sequences around a tile's edge, grouped queries, padding, a window and a soft cap; and no token."""

    def tensors(tokens, heads, key_heads, width):
        return [
            normal(tokens, count, width, seed=seed).to(dtype)
            for seed, count in enumerate((heads, key_heads, key_heads))
        ]

    bounds = torch.tensor([0, 1, 1, 35, 68], dtype=torch.int32)
    skip = torch.tensor([0, 0, 5, 33], dtype=torch.int32)
    return {
        "packed, grouped": (*tensors(68, 4, 2, 32), bounds, None, 34, 0.2, None, None),
        "padding, window, soft cap": (*tensors(68, 2, 2, 40), bounds, skip, 34, 0.2, 7, 3.0),
        "no token": (*tensors(0, 2, 1, 32), torch.zeros(1, dtype=torch.int32), None, 0, 0.2, None, None),
    }
