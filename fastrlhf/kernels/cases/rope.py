"""Cases of `rope`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal


def tensors(dtype, shape, key_heads, rotated):
    """Query, key, and the cosines and sines of angles that differ between the halves, to tell them apart."""
    *leading, _, width = shape
    angles = normal(*leading, rotated, seed=3, scale=5.0)
    return (
        normal(*shape, seed=1).to(dtype),
        normal(*leading, key_heads, width, seed=2).to(dtype),
        angles.cos().to(dtype),
        angles.sin().to(dtype),
    )


def cases(dtype):
    """Whole heads and parts of them, forward and transposed; cosines in float32; and no token."""
    whole, part = tensors(dtype, (5, 3, 64), 1, 64), tensors(dtype, (2, 3, 4, 20), 4, 6)
    wide = (*part[:2], *(tensor.to(torch.promote_types(dtype, torch.float32)) for tensor in part[2:]))
    return {
        "whole heads": (*whole, False),
        "whole heads, transposed": (*whole, True),
        "parts": (*wide, False),
        "parts, transposed": (*part, True),
        "no token": (*(tensor[:0] for tensor in whole), False),
    }
