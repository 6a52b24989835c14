"""Launcher of the CUDA kernel of attention over a paged cache."""

from __future__ import annotations

import torch

from fastrlhf.device.launch import launch
from fastrlhf.kernels import cuda as backend
from fastrlhf.kernels import native
from fastrlhf.kernels.decode_attention_arguments import decode_attention_arguments
from fastrlhf.kernels.decode_splits import decode_splits

MAX_WIDTH = 256


def serves(query: torch.Tensor, *caches_and_others: torch.Tensor) -> str | None:
    """Why the kernel, which reads 16 bytes at a time, cannot take these tensors, or None."""
    return backend.serves(query) or misfit(query, *caches_and_others[:2])


def misfit(query: torch.Tensor, *caches: torch.Tensor) -> str | None:
    """Why tensors of a dtype that it takes do not fit the kernel."""
    count = 16 // query.element_size()
    width = query.shape[-1]
    if width > MAX_WIDTH or width % count:
        return f"takes head dimensions up to {MAX_WIDTH} that are multiples of {count}, not {width}"
    strides = [stride for cache in caches for stride in cache.stride()[:3]]
    if any(stride % count for stride in strides) or any(cache.data_ptr() % 16 for cache in caches):
        return "takes caches whose rows begin at multiples of 16 bytes"
    return None


def decode_attention(*args):
    """See `fastrlhf.kernels.decode_attention`; arguments as `reference`. The same bits on every card."""
    given = decode_attention_arguments(*args)
    query, key_cache, block_table, window = given.inputs[0], args[1], args[3], args[6]
    rows, heads, width = query.shape
    capacity = block_table.shape[1] * key_cache.shape[1]
    splits = decode_splits(rows * key_cache.shape[2], capacity, window)
    scratch = [
        torch.empty((rows, heads, splits, size), dtype=torch.float32, device=query.device)
        for size in (2, width)
        if splits > 1
    ]
    addresses = [tensor.data_ptr() for tensor in (given.output, *scratch)]
    launch(
        native.module("_cuda"),
        "decode_attention",
        query.device,
        query.dtype == torch.bfloat16,
        *given.arguments,
        splits,
        addresses if scratch else [*addresses, 0, 0],
    )
    return given.output
