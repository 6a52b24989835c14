"""Gradients of a layer's matrix product."""

from __future__ import annotations

from fastrlhf.kernels.reference.linear import base


def linear_backward(grad, x, weight, scales, scale_scales, offset, needs_x, needs_weight, needs_bias):
    """See `fastrlhf.kernels.linear`."""
    return (
        grad @ base(x, weight, scales, scale_scales, offset) if needs_x else x.new_empty(0),
        (grad.T @ x).to(weight.dtype) if needs_weight else weight.new_empty(0),
        grad.sum(dim=0) if needs_bias else x.new_empty(0),
    )
