"""Launcher of the C++ kernel of AdamW."""

from __future__ import annotations

import torch

from fastrlhf.kernels import cpu, native
from fastrlhf.kernels.adamw_numbers import adamw_numbers


def serves(parameters: torch.Tensor, *_: torch.Tensor) -> str | None:
    """Why the kernel cannot take these tensors, or None; it takes gradients in float32 and bfloat16."""
    return cpu.serves(parameters)


def adamw(parameters, gradients, exp_avg, exp_avg_sq, bfloat16_copy, *rest):
    """See `fastrlhf.kernels.adamw`. The same bits wherever a chunk begins and ends, for every number of threads."""
    *scalars, lr, step, grad_scale, max_norm, beta1, beta2, eps, weight_decay = rest
    tensors = (parameters, gradients, exp_avg, exp_avg_sq, bfloat16_copy, *scalars)
    native.module("_cpu").adamw(
        gradients.dtype == torch.bfloat16,
        [0 if tensor is None else tensor.data_ptr() for tensor in tensors],
        parameters.numel(),
        adamw_numbers(lr, step, grad_scale, max_norm, beta1, beta2, eps, weight_decay),
    )
