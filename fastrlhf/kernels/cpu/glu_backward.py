"""Launcher of the C++ kernel of the gated linear units' gradients."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.pool import empty
from fastrlhf.kernels.glu import ACTIVATIONS
from fastrlhf.kernels.rows import as_one_row


def glu_backward(grad_output, gate, up, activation):
    """See `fastrlhf.kernels.glu`."""
    grad_gate, grad_up = empty(gate.shape), empty(gate.shape)
    given, strides, shape = as_one_row(grad_output, gate, up)
    native.module("_cpu").glu_backward(
        *(
            number
            for tensor, stride in zip(given, strides, strict=True)
            for number in (tensor.data_ptr(), stride)
        ),
        grad_gate.data_ptr(),
        grad_up.data_ptr(),
        *shape,
        ACTIVATIONS.index(activation),
    )
    return grad_gate, grad_up
