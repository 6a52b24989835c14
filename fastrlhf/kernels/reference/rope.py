"""Rotary position embedding, as the equations read."""

from __future__ import annotations

import torch


def rope(query, key, cos, sin, transposed):
    """See `fastrlhf.kernels.rope`. Computes in float32 at least."""
    return rotated(query, cos, sin, transposed), rotated(key, cos, sin, transposed)


def rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, transposed: bool) -> torch.Tensor:
    """`heads`, `[..., H, D]`, rotated."""
    dtype = torch.promote_types(heads.dtype, torch.float32)
    width = cos.shape[-1]
    first, second = heads[..., :width].to(dtype).chunk(2, dim=-1)
    first_cos, second_cos = cos.unsqueeze(-2).to(dtype).chunk(2, dim=-1)
    first_sin, second_sin = sin.unsqueeze(-2).to(dtype).chunk(2, dim=-1)
    if transposed:
        first_sin, second_sin = -second_sin, -first_sin
    turned = [first * first_cos - second * first_sin, second * second_cos + first * second_sin]
    return torch.cat([*(half.to(heads.dtype) for half in turned), heads[..., width:]], dim=-1)
