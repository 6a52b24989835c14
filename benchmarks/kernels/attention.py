"""Causal attention over packed sequences: do tiles of our own pay against scaled_dot_product_attention?"""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "attention"

# sequences, length, heads, key-value heads, head dimension: SmolLM2-135M at one number of tokens; the 17 M model
SHAPES = [(8, 64, 9, 3, 64), (4, 128, 9, 3, 64), (2, 256, 9, 3, 64), (1, 512, 9, 3, 64), (16, 96, 4, 4, 64)]


def plain(query, key, value, sequences):
    """PyTorch's own, on a batch of sequences that are all as long."""
    query, key, value = (t.unflatten(0, (sequences, -1)).transpose(1, 2) for t in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=grouped
    )
    return output.transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward and backward"])
def bench_attention(measure, device, shape, training):
    torch.manual_seed(0)
    sequences, length, heads, key_heads, width = shape
    inputs = [
        torch.randn(sequences * length, count, width, device=device, requires_grad=training)
        for count in (heads, key_heads, key_heads)
    ]
    cu_seqlens = length * torch.arange(sequences + 1, dtype=torch.int32, device=device)
    grad_output = torch.randn(sequences * length, heads, width, device=device)

    def run(output):
        if training:
            torch.autograd.grad(output, inputs, grad_output)

    measure(
        lambda: run(plain(*inputs, sequences)),
        lambda: run(kernels.attention(*inputs, cu_seqlens, max_seqlen=length).output),
    )
