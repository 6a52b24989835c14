"""Gradients of a layer's matrix product with low-rank adapters."""

from __future__ import annotations

import torch

from fastrlhf.kernels.reference.linear_backward import linear_backward
from fastrlhf.kernels.reference.lora_linear import members


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
    """See `fastrlhf.kernels.lora_linear`. With `h_g = scaling_g x A_g^T` and `e_g = scaling_g dy B_g`:

    `dx = dy W + e_g A_g`, `dA_g = e_g^T x`, `dB_g = dy^T h_g` over the rows of each group.
    """
    base = weight, scales, scale_scales, offset
    grad_x, grad_weight, grad_bias = linear_backward(grad, x, *base, needs_x, needs_weight, needs_bias)
    grad_A, grad_B = torch.empty_like(lora_A), torch.empty_like(lora_B)
    wide_grad, wide_x = grad.to(lora_A.dtype), x.to(lora_A.dtype)
    low_rank = torch.zeros_like(wide_x)
    for g, member in enumerate(members(group_offsets, x.shape[0])):
        error = scaling[g].to(lora_A.dtype) * (wide_grad @ lora_B[g])
        error, own_grad = torch.where(member, error, 0), torch.where(member, wide_grad, 0)
        grad_A[g] = error.T @ torch.where(member, wide_x, 0)
        grad_B[g] = own_grad.T @ torch.where(member, hidden, 0)
        low_rank = torch.where(member, error @ lora_A[g], low_rank)
    return (
        (grad_x + low_rank).to(x.dtype) if needs_x else grad_x,
        grad_weight,
        grad_A,
        grad_B,
        grad_bias,
    )
