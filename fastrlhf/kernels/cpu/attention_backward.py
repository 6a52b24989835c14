"""Launcher of the C++ kernel of attention's gradients."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.attention import contiguous, heads_address, problem_arguments
from fastrlhf.kernels.cpu.pool import empty
from fastrlhf.kernels.rows import with_dense_rows


def attention_backward(
    grad_output, query, key, value, output, lse, cu_seqlens, skip, max_seqlen, scale, window, softcap
):
    """See `fastrlhf.kernels.attention`. Bit for bit the same for every number of threads."""
    # Held by name until the kernel returns: a copy dies with its last reference.
    tensors = [*map(with_dense_rows, (query, key, value)), *map(contiguous, (cu_seqlens, skip))]
    grad_output, output, lse = with_dense_rows(grad_output), output.contiguous(), lse.contiguous()
    gradients = tuple(empty(tensor.shape).zero_() for tensor in (query, key, value))
    native.module("_cpu").attention_backward(
        *problem_arguments(*tensors, scale, window, softcap),
        heads_address(grad_output),
        output.data_ptr(),
        lse.data_ptr(),
        [gradient.data_ptr() for gradient in gradients],
    )
    return gradients
