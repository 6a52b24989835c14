"""Launcher of the C++ kernel of the gated linear units."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.pool import empty
from fastrlhf.kernels.glu import ACTIVATIONS
from fastrlhf.kernels.rows import as_one_row


def glu(gate, up, activation):
    """See `fastrlhf.kernels.glu`."""
    output = empty(gate.shape)
    (gates, ups), (gate_stride, up_stride), (rows, columns) = as_one_row(gate, up)
    native.module("_cpu").glu(
        gates.data_ptr(),
        gate_stride,
        ups.data_ptr(),
        up_stride,
        output.data_ptr(),
        rows,
        columns,
        ACTIVATIONS.index(activation),
    )
    return output
