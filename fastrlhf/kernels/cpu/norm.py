"""Launcher of the C++ kernel of RMS norm and layer norm."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.pool import empty
from fastrlhf.kernels.rows import as_rows


def norm(hidden_states, weight, bias, residual, eps, weight_offset, cast_before_weight):
    """See `fastrlhf.kernels.norm`; in float32 there is no cast before the weight."""
    shape = hidden_states.shape
    # Held by name until the kernel returns: a copy dies with its last reference.
    rows, weight = as_rows(hidden_states), weight.contiguous()
    bias = None if bias is None else bias.contiguous()
    added = None if residual is None else as_rows(residual)
    normed, summed = empty(shape), empty((0,) if residual is None else shape)
    mean, rstd = empty((0,) if bias is None else shape[:-1]), empty(shape[:-1])
    native.module("_cpu").norm(
        rows.data_ptr(),
        rows.stride(0),
        0 if added is None else added.data_ptr(),
        0 if added is None else added.stride(0),
        weight.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        normed.data_ptr(),
        summed.data_ptr(),
        mean.data_ptr(),
        rstd.data_ptr(),
        *rows.shape,
        eps,
        weight_offset,
    )
    return normed, summed, mean, rstd
