"""Inputs of `decode_attention`, and what most model code computes for them; shared by the backends' own tests."""

from __future__ import annotations

import torch

from fastrlhf import kernels
from tests.kernels.attention_cases import plain as plain_attention
from tests.support.precision import assert_as_good_as


def decode_case(
    lengths, heads=4, key_heads=2, width=32, block_size=16, dtype=torch.float32, spare=1, seed=0
) -> dict:
    """Arguments of `kernels.decode_attention`: each row's blocks lie about in the cache, and the blocks that no row
    holds, like the slots past a row's end, are full of NaN; `spare` blocks a row are past its end."""
    generator = torch.Generator().manual_seed(seed)
    columns = max((-(-length // block_size) for length in lengths), default=0) + spare
    blocks = len(lengths) * columns + 3
    table = torch.randperm(blocks, generator=generator)[: len(lengths) * columns].view(len(lengths), columns)
    caches = [torch.full((blocks, block_size, key_heads, width), torch.nan) for _ in range(2)]
    for row, length in enumerate(lengths):
        for cache in caches:
            held = torch.randn(length, key_heads, width, generator=generator)
            places = torch.arange(length)
            cache[table[row, places // block_size], places % block_size] = held
    lengths = torch.tensor(lengths, dtype=torch.int32)
    held = torch.arange(columns) * block_size < lengths[:, None]
    return {
        "query": (2 * torch.randn(len(lengths), heads, width, generator=generator)).to(dtype),
        "key_cache": caches[0].to(dtype),
        "value_cache": caches[1].to(dtype),
        # what is past the end is no block at all
        "block_table": torch.where(held, table, -7).int(),
        "lengths": lengths,
    }


def plain(query, key_cache, value_cache, block_table, lengths, scale=None, window=None, softcap=None):
    """Each row's keys and values in order, whole scores: the last position of attention over them."""
    outputs = []
    for row, length in enumerate(lengths.tolist()):
        places = torch.arange(length)
        blocks = block_table[row, places // key_cache.shape[1]].long()
        keys, values = (cache[blocks, places % key_cache.shape[1]] for cache in (key_cache, value_cache))
        queries = query[row].expand(length, -1, -1)
        bounds = torch.tensor([0, length])
        output, _ = plain_attention(
            queries, keys, values, bounds, length, scale=scale, window=window, softcap=softcap
        )
        outputs.append(output[-1] if length else torch.zeros_like(query[row]))
    return torch.stack(outputs) if outputs else torch.zeros_like(query)


def in_float64(case) -> dict:
    return {name: item.double() if item.is_floating_point() else item for name, item in case.items()}


def assert_decode_right(case, device, function=kernels.decode_attention, **options) -> None:
    """`function` is at most twice as far from the truth as `plain`."""
    actual = function(**{name: item.to(device) for name, item in case.items()}, **options)
    assert_as_good_as(actual, plain(**case, **options), plain(**in_float64(case), **options), name="output")
