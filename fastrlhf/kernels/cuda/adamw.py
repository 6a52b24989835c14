"""Launcher of the CUDA kernel of AdamW."""

from __future__ import annotations

import torch

from fastrlhf.device.launch import launch
from fastrlhf.kernels import native
from fastrlhf.kernels.adamw_numbers import adamw_numbers


def adamw(parameters, gradients, exp_avg, exp_avg_sq, bfloat16_copy, *rest):
    """See `fastrlhf.kernels.adamw`."""
    *scalars, lr, step, grad_scale, max_norm, beta1, beta2, eps, weight_decay = rest
    tensors = (parameters, gradients, exp_avg, exp_avg_sq, bfloat16_copy, *scalars)
    launch(
        native.module("_cuda"),
        "adamw",
        parameters.device,
        gradients.dtype == torch.bfloat16,
        [0 if tensor is None else tensor.data_ptr() for tensor in tensors],
        parameters.numel(),
        adamw_numbers(lr, step, grad_scale, max_norm, beta1, beta2, eps, weight_decay),
    )
