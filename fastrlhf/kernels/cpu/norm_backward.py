"""Launcher of the C++ kernel of the norms' gradients."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.pool import empty
from fastrlhf.kernels.rows import as_rows


def norm_backward(grad_normed, grad_summed, summed, weight, mean, rstd, weight_offset, needs_weight):
    """See `fastrlhf.kernels.norm`. The weight's gradient has the same bits for every number of threads."""
    nothing = summed.new_empty(0)
    # Held by name until the kernel returns: a copy dies with its last reference.
    rows = [
        nothing.view(0, 1) if tensor is None else as_rows(tensor)
        for tensor in (grad_normed, grad_summed, summed)
    ]
    weight, rstd = weight.contiguous(), rstd.contiguous()
    mean = nothing if mean is None else mean.contiguous()
    grad = empty(summed.shape)
    grad_weight = empty(weight.shape if needs_weight else (0,))
    grad_bias = empty(weight.shape if needs_weight and mean is not nothing else (0,))
    native.module("_cpu").norm_backward(
        *(number for tensor in rows for number in (tensor.data_ptr(), tensor.stride(0))),
        *(tensor.data_ptr() for tensor in (weight, mean, rstd, grad, grad_weight, grad_bias)),
        *rows[2].shape,
        weight_offset,
    )
    return grad, grad_weight, grad_bias
