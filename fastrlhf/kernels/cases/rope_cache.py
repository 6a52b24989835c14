"""Cases of `rope_cache`; every slot is some token's, so that the caches are written in full."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal, rope


def tensors(dtype, query_heads, key_heads, width, rotated, tokens=5):
    """Arguments of tokens whose slots are the caches' in another order."""
    query, key, cos, sin = rope.tensors(dtype, (tokens, query_heads, width), key_heads, rotated)
    value, keys, values = (normal(tokens, key_heads, width, seed=seed).to(dtype) for seed in (5, 6, 7))
    return query, key, value, cos, sin, torch.arange(tokens).flip(0), keys, values


def cases(dtype):
    """Whole heads and parts of them; cosines in float32; views of a fused projection; and no token."""
    query, key, value, cos, sin, *rest = tensors(dtype, 4, 2, 20, 6)
    wide = (tensor.to(torch.promote_types(dtype, torch.float32)) for tensor in (cos, sin))
    fused = torch.cat([query, key, value], dim=1)
    return {
        "whole heads": tensors(dtype, 3, 1, 64, 64),
        "parts": (query, key, value, *wide, *rest),
        "views": (*(fused[:, a:b] for a, b in ((0, 4), (4, 6), (6, 8))), cos, sin, *rest),
        "no token": tensors(dtype, 3, 1, 64, 64, tokens=0),
    }
