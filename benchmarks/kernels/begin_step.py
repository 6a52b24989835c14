"""The beginning and the end of a decoding step against the operations of PyTorch that they are."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "begin_step"
BLOCK, POSITIONS = 16, 2048


def plain_begin(embedding, tokens, lengths, table, cos, sin):
    positions = lengths.long()
    block = table.gather(1, (positions // BLOCK)[:, None])[:, 0].long()
    slots = block * BLOCK + positions % BLOCK
    return embedding[tokens], slots, lengths + 1, cos[positions], sin[positions]


def plain_end(logprobs, entropy, tokens, steps, lengths, drawn):
    for kept, new in zip((tokens, logprobs, entropy), drawn, strict=True):
        kept.copy_(new)
    steps += 1
    lengths.copy_((lengths + 1).clamp(max=POSITIONS - 1))


# Rows, tokens of the vocabulary, width, elements of a head: the 17 M model's, SmolLM2's and Llama-3-8B's.
@pytest.mark.parametrize(
    "shape", [(16, 50_304, 256, 32), (8, 49_152, 576, 64), (64, 128_256, 4096, 128)], ids=str
)
@pytest.mark.parametrize("part", ["begin", "end"])
def bench_step(measure, device, part, shape):
    rows, vocabulary, width, rotated = shape
    tokens = torch.randint(vocabulary, (rows,), device=device)
    lengths = torch.full((rows,), 100, dtype=torch.int32, device=device)
    case = f"{part}, {rows} rows, {vocabulary} x {width}"
    if part == "begin":
        table = torch.zeros(rows, POSITIONS // BLOCK, dtype=torch.int32, device=device)
        cos, sin = torch.randn(2, POSITIONS, rotated, device=device)
        state = torch.randn(vocabulary, width, device=device), tokens, lengths, table

        def ours():
            return kernels.begin_step(*state, block_size=BLOCK, cos=cos, sin=sin)

        measure(case, ours, eager=lambda: plain_begin(*state, cos, sin))
        return
    floats = torch.randn(2, rows, device=device)
    drawn = tokens.clone(), *floats.clone()
    state = *floats, tokens, tokens.clone(), lengths

    def ours():
        kernels.end_step(*state, None, drawn, last_position=POSITIONS - 1)

    measure(case, ours, eager=lambda: plain_end(*state, drawn))
