"""The arguments of `decode_attention` as its C++ and CUDA kernels take them (see csrc/decode_problem.h)."""

from __future__ import annotations

from typing import NamedTuple

import torch


class DecodeArguments(NamedTuple):
    """`inputs` are to be held by name until the kernel returns, or is launched: a copy dies with its last reference."""

    inputs: tuple[torch.Tensor, ...]
    output: torch.Tensor
    arguments: tuple


def decode_attention_arguments(
    query, key_cache, value_cache, block_table, lengths, scale, window, softcap
) -> DecodeArguments:
    """Arguments as `reference`; the small tensors are made contiguous, the caches are taken as they lie."""
    query, block_table, lengths = query.contiguous(), block_table.contiguous(), lengths.contiguous()
    sizes = (query.shape[0], query.shape[1], key_cache.shape[2], query.shape[2])
    sizes += (key_cache.shape[0], key_cache.shape[1], block_table.shape[1], window or 0)
    return DecodeArguments(
        (query, block_table, lengths),
        torch.empty_like(query),
        (
            [tensor.data_ptr() for tensor in (query, block_table, lengths)],
            [[cache.data_ptr(), *cache.stride()[:3]] for cache in (key_cache, value_cache)],
            sizes,
            scale,
            softcap or 0.0,
        ),
    )
