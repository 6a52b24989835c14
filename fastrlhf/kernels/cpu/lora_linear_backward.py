"""Gradients of a layer's matrix product with low-rank adapters on the CPU."""

from __future__ import annotations

import torch

from fastrlhf.kernels import products
from fastrlhf.kernels.cpu.linear_backward import linear_backward
from fastrlhf.kernels.cpu.lora_linear import in_one_pass, narrow_product, occupied
from fastrlhf.kernels.cpu.matmul import LowRank, matmul


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
    if needs_x and in_one_pass(x, weight, group_offsets):
        return _in_one_pass(
            grad.contiguous(),
            x.contiguous(),
            hidden,
            weight,
            lora_A,
            lora_B,
            scaling,
            needs_weight,
            needs_bias,
        )
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


def _in_one_pass(grad, x, hidden, weight, lora_A, lora_B, scaling, needs_weight, needs_bias):
    adapter = LowRank(lora_B[0].contiguous(), lora_A[0].contiguous(), float(scaling))
    grad_x, error = matmul(grad, weight.contiguous(), None, adapter)
    return (
        grad_x,
        products.grad_weight(grad, x) if needs_weight else weight.new_empty(0),
        matmul(error.T, x)[0][None],
        # of fewer rows than its transpose, and so with fewer numbers to fill up to whole vectors
        matmul(hidden.T, grad)[0].T.contiguous()[None],
        grad.sum(dim=0) if needs_bias else x.new_empty(0),
    )
