"""Launcher of the C++ kernel of attention."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.pool import empty
from fastrlhf.kernels.rows import with_dense_rows


def attention(query, key, value, cu_seqlens, skip, max_seqlen, scale, window, softcap):
    """See `fastrlhf.kernels.attention`. Bit for bit the same for every number of threads."""
    # Held by name until the kernel returns: a copy dies with its last reference.
    tensors = [*map(with_dense_rows, (query, key, value)), *map(contiguous, (cu_seqlens, skip))]
    if skip is None:
        output = empty(query.shape)
        lse = query.new_empty(query.shape[:2])
    else:  # the kernel leaves padding as it is
        output = query.new_zeros(query.shape)
        lse = query.new_full(query.shape[:2], -torch.inf)
    problem = problem_arguments(*tensors, scale, window, softcap)
    native.module("_cpu").attention(*problem, output.data_ptr(), lse.data_ptr())
    return output, lse


def problem_arguments(query, key, value, cu_seqlens, skip, scale, window, softcap) -> tuple:
    """The arguments that forward and backward share, as `attention_binding.h` takes them."""
    return (
        [heads_address(tensor) for tensor in (query, key, value)],
        cu_seqlens.data_ptr(),
        0 if skip is None else skip.data_ptr(),
        [cu_seqlens.shape[0] - 1, query.shape[1], key.shape[1], query.shape[2], window or 0],
        scale,
        softcap or 0.0,
    )


def heads_address(tensor: torch.Tensor) -> list[int]:
    """Where a `[T, H, D]` tensor with dense rows lies: its address and two strides."""
    return [tensor.data_ptr(), *tensor.stride()[:2]]


def contiguous(tensor: torch.Tensor | None) -> torch.Tensor | None:
    return None if tensor is None else tensor.contiguous()
