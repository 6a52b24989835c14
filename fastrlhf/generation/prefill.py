"""Computes the keys and values of prompts, packed one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from fastrlhf.generation.cache import BLOCK_SIZE, PagedCache
from fastrlhf.generation.transfer import upload
from fastrlhf.kernels.autocast import switched_off
from fastrlhf.models.decoder import Decoder
from fastrlhf.models.layers import (
    embed,
    packed_attention,
    project,
    project_rows,
    rows_are_native,
    run_layers,
)

Prompt = tuple[tuple[int, ...], list[int]]

# Prompts up to this length are packed together; longer ones have rows enough for the products of training.
SHORT = 128
# Tokens of a pack, which bound the activations that are held.
PACK = 2048


@torch.no_grad()
def prefill(decoder: Decoder, cache: PagedCache, prompts: list[Prompt]) -> None:
    """Write the keys and values of prompts into their blocks.

    On a CPU in float32 the bits of a prompt's are the same whatever is packed beside it: short prompts are multiplied
    row by row, long ones each alone.

    Args:
        prompts: tokens, at least one, and the blocks that take them.
    """
    native = rows_are_native(decoder)
    for pack in _packs(prompts, alone=native):
        short = native and len(pack[0][0]) <= SHORT
        _prefill_pack(decoder, cache, pack, project_rows if short else project)


def _packs(prompts: list[Prompt], *, alone: bool) -> Iterator[list[Prompt]]:
    pack, held = [], 0
    for prompt in prompts:
        length = len(prompt[0])
        if alone and length > SHORT:
            yield [prompt]
            continue
        if pack and held + length > PACK:
            yield pack
            pack, held = [], 0
        pack.append(prompt)
        held += length
    if pack:
        yield pack


def _prefill_pack(decoder: Decoder, cache: PagedCache, pack: list[Prompt], product) -> None:
    device = decoder.embedding.device
    lengths = torch.tensor([len(tokens) for tokens, _ in pack])
    positions = torch.cat([torch.arange(int(length)) for length in lengths])
    blocks = torch.cat([torch.tensor(blocks).repeat_interleave(BLOCK_SIZE)[: len(of)] for of, blocks in pack])
    slots = upload(blocks * BLOCK_SIZE + positions % BLOCK_SIZE, torch.int64, device)
    tokens = upload([token for tokens, _ in pack for token in tokens], torch.int64, device)
    positions = upload(positions, torch.int64, device)
    cu_seqlens = upload(torch.nn.functional.pad(lengths.cumsum(0), (1, 0)), torch.int32, device)
    among_themselves = packed_attention(decoder, cu_seqlens, int(lengths.max()))

    def attend(layer: int, query, key, value):
        cache.write(layer, slots, key, value)
        return among_themselves(layer, query, key, value)

    with switched_off(decoder.embedding):
        run_layers(decoder, embed(decoder, tokens, positions), decoder.angles(positions), attend, product)
