"""Gradients of a layer's matrix product with low-rank adapters on the CPU."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cpu.linear_backward import linear_backward
from fastrlhf.kernels.cpu.lora_linear import narrow_product, occupied


def lora_linear_backward(
    grad,
    x,
    hidden,
    weight,
    scales,
    scale_scales,
    offset,
    lora_A,
    lora_B,
    group_offsets,
    scaling,
    needs_x,
    needs_weight,
    needs_bias,
):
    """See `fastrlhf.kernels.lora_linear`; the gradients as `reference` has them."""
    base = weight, scales, scale_scales, offset
    grad_x, grad_weight, grad_bias = linear_backward(grad, x, *base, needs_x, needs_weight, needs_bias)
    grad_A, grad_B = torch.zeros_like(lora_A), torch.zeros_like(lora_B)
    for g, rows in occupied(group_offsets):
        error = narrow_product(grad[rows], lora_B[g].T.contiguous()).mul_(scaling[g])
        torch.mm(error.T, x[rows], out=grad_A[g])
        torch.mm(grad[rows].T, hidden[rows], out=grad_B[g])
        if needs_x:
            grad_x[rows].addmm_(error, lora_A[g])
    return grad_x, grad_weight, grad_A, grad_B, grad_bias
