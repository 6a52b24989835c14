"""Gradients of a layer's matrix product on the CPU."""

from __future__ import annotations

import torch

from fastrlhf.kernels import products
from fastrlhf.kernels.cpu.linear import TILE_BYTES, serves, tiles

__all__ = ["linear_backward", "serves"]


def linear_backward(grad, x, weight, scales, scale_scales, offset, needs_x, needs_weight, needs_bias):
    """See `fastrlhf.kernels.linear`."""
    grad = grad.contiguous()
    return (
        grad_input(grad, x, weight, scales, scale_scales, offset) if needs_x else x.new_empty(0),
        products.grad_weight(grad, x.contiguous()).to(weight.dtype) if needs_weight else weight.new_empty(0),
        grad.sum(dim=0) if needs_bias else x.new_empty(0),
    )


def grad_input(grad, x, weight, scales, scale_scales, offset):
    """`grad weight`, a weight that is not float32 tile by tile."""
    if weight.dtype == torch.float32:
        return products.grad_input(grad, weight.contiguous())
    grad_x = x.new_zeros(grad.shape[0], x.shape[1])
    if x.shape[1] > 0:
        for at, tile in tiles(x, weight, scales, scale_scales, offset, TILE_BYTES):
            grad_x += products.grad_input(grad[:, at].contiguous(), tile, keep=False)
    return grad_x
