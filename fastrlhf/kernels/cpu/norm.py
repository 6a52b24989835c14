"""Launcher of the C++ kernel of RMS norm and layer norm."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.pool import empty
from fastrlhf.kernels.rows import as_rows


def norm(hidden_states, weight, bias, residual, eps, weight_offset, cast_before_weight):
    """See `fastrlhf.kernels.norm`; in float32 there is no cast before the weight."""
    shape, nothing = hidden_states.shape, hidden_states.new_empty(0)
    # Held by name until the kernel returns: a copy dies with its last reference.
    rows, weight = as_rows(hidden_states), weight.contiguous()
    bias = nothing if bias is None else bias.contiguous()
    added = nothing.view(0, 1) if residual is None else as_rows(residual)
    normed = empty(shape)
    summed = nothing if residual is None else empty(shape)
    mean, rstd = torch.empty(shape[:-1] if bias.numel() else 0), torch.empty(shape[:-1])
    native.module("_cpu").norm(
        rows.data_ptr(),
        rows.stride(0),
        added.data_ptr(),
        added.stride(0),
        *(tensor.data_ptr() for tensor in (weight, bias, normed, summed, mean, rstd)),
        *rows.shape,
        eps,
        weight_offset,
    )
    return normed, summed, mean, rstd
