"""Launcher of the Triton kernel of the gradients of a layer's matrix product, for weights in 8 and 4 bits."""

from __future__ import annotations

from fastrlhf.kernels.triton import linear
from fastrlhf.kernels.triton.lora_linear_product import layer_product


def serves(grad, x, weight, *rest):
    """Why this kernel cannot take these tensors, or None."""
    return linear.serves(x, weight, *rest)


def linear_backward(grad, x, weight, scales, scale_scales, offset, needs_x, needs_weight, needs_bias):
    """See `fastrlhf.kernels.linear`; a quantised weight has no gradient."""
    base = weight, scales, scale_scales, offset
    return (
        layer_product(grad, base, x.shape[1], transposed=True) if needs_x else x.new_empty(0),
        weight.new_empty(0),
        grad.sum(dim=0) if needs_bias else x.new_empty(0),
    )
