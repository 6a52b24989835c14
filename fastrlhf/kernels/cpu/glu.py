"""Launcher of the C++ kernel of the gated linear units."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.pool import empty
from fastrlhf.kernels.glu import ACTIVATIONS
from fastrlhf.kernels.rows import as_one_row


def glu(gate, up, activation):
    """See `fastrlhf.kernels.glu`."""
    output = empty(gate.shape)
    gates, ups = as_one_row(gate, up)
    native.module("_cpu").glu(
        gates.data_ptr(),
        gates.stride(0),
        ups.data_ptr(),
        ups.stride(0),
        output.data_ptr(),
        *gates.shape,
        ACTIVATIONS.index(activation),
    )
    return output
