"""Rotary position embedding: one pass against the halves that `rotate_half` copies."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "rope"


def rotate_half(x):
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def plain(query, key, cos, sin):
    """As the models of transformers have it."""
    cos, sin = cos.unsqueeze(-2), sin.unsqueeze(-2)
    return query * cos + rotate_half(query) * sin, key * cos + rotate_half(key) * sin


# Tokens, query heads, key heads and their width: SmolLM2's and the 17 M model's, and a step of decoding.
@pytest.mark.parametrize("shape", [(1024, 9, 3, 64), (1536, 8, 4, 32), (16, 9, 3, 64)], ids=str)
@pytest.mark.parametrize("way", ["in place", "forward", "forward and backward"])
def bench_rope(measure, device, way, shape):
    torch.manual_seed(0)
    tokens, heads, key_heads, width = shape
    angles = torch.randn(tokens, width // 2, device=device).repeat(1, 2)
    cos, sin = angles.cos(), angles.sin()
    query = torch.randn(tokens, heads, width, device=device)
    key = torch.randn(tokens, key_heads, width, device=device)
    training = way == "forward and backward"
    grads = torch.randn_like(query), torch.randn_like(key)
    query.requires_grad_(training)
    key.requires_grad_(training)

    def run(function):
        outputs = function(query, key, cos, sin)
        if training:
            torch.autograd.grad(outputs, [query, key], grads)

    ours = kernels.rope_inplace if way == "in place" else kernels.rope
    case = f"{tokens} tokens, {heads}/{key_heads} heads of {width}, {way}"
    measure(case, lambda: run(ours), eager=lambda: run(plain))
