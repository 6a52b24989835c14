"""Causal attention over packed sequences: do tiles of our own pay against scaled_dot_product_attention?"""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import beside
from fastrlhf import kernels

OPERATION = "attention"

# sequences, length, heads, key-value heads, head dimension: SmolLM2-135M at one number of tokens; the 17 M model
SHAPES = [(8, 64, 9, 3, 64), (4, 128, 9, 3, 64), (2, 256, 9, 3, 64), (1, 512, 9, 3, 64), (16, 96, 4, 4, 64)]
LENGTHS = [16, 48, 24, 128, 8, 64, 32, 96]


def plain(query, key, value, sequences):
    """PyTorch's own, on a batch of sequences that are all as long."""
    query, key, value = (t.unflatten(0, (sequences, -1)).transpose(1, 2) for t in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    output = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, is_causal=True, enable_gqa=grouped
    )
    return output.transpose(1, 2).flatten(0, 1)


def heads_of(tokens, heads, key_heads, width, device, training):
    torch.manual_seed(0)
    return [
        torch.randn(tokens, count, width, device=device, requires_grad=training)
        for count in (heads, key_heads, key_heads)
    ]


# scaled_dot_product_attention is one operation to the compiler too.
@beside(compiled=False)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("way", ["forward", "forward and backward"])
def bench_attention(measure, device, way, shape):
    sequences, length, heads, key_heads, width = shape
    training = way != "forward"
    inputs = heads_of(sequences * length, heads, key_heads, width, device, training)
    cu_seqlens = length * torch.arange(sequences + 1, dtype=torch.int32, device=device)
    grad_output = torch.randn_like(inputs[0])

    def run(output):
        if training:
            torch.autograd.grad(output, inputs, grad_output)

    measure(
        f"{sequences} x {length} tokens, {heads}/{key_heads} heads, {way}",
        lambda: run(kernels.attention(*inputs, cu_seqlens, max_seqlen=length).output),
        eager=lambda: run(plain(*inputs, sequences)),
    )


@beside(compiled=False)
def bench_attention_of_ragged_sequences(measure, device):
    """A batch whose sequences end at different lengths: packed against padded to the longest."""
    lengths, longest = torch.tensor(LENGTHS), max(LENGTHS)
    inputs = heads_of(int(lengths.sum()), 9, 3, 64, device, True)
    cu_seqlens = torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32).to(device)
    padded = heads_of(len(LENGTHS) * longest, 9, 3, 64, device, True)
    grads = torch.randn_like(inputs[0]), torch.randn_like(padded[0])
    measure(
        f"{len(LENGTHS)} x {min(LENGTHS)} to {longest} tokens, 9/3 heads, forward and backward",
        lambda: torch.autograd.grad(
            kernels.attention(*inputs, cu_seqlens, max_seqlen=longest).output, inputs, grads[0]
        ),
        eager=lambda: torch.autograd.grad(plain(*padded, len(LENGTHS)), padded, grads[1]),
    )
