"""Launcher of the CUDA kernel of AdamW for many tensors."""

from __future__ import annotations

import torch

from fastrlhf.device.launch import launch
from fastrlhf.kernels import native
from fastrlhf.kernels.adamw_numbers import adamw_numbers


def adamw_each(grad_norm, parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies, *numbers):
    """See `fastrlhf.kernels.adamw_each`. A launch for each 64 tensors."""
    launch(
        native.module("_cuda"),
        "adamw_each",
        grad_norm.device,
        gradients[0].dtype == torch.bfloat16,
        *addresses_and_sizes(parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies),
        grad_norm.data_ptr(),
        adamw_numbers(*numbers),
    )


def addresses_and_sizes(parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies):
    """Of each tensor the addresses of what belongs to it (zero for no copy), and how many numbers it has."""
    copies = [0] * len(parameters)
    if bfloat16_copies:
        copies = [copy.data_ptr() for copy in bfloat16_copies]
    lists = zip(parameters, gradients, exp_avgs, exp_avg_sqs, copies, strict=True)
    addresses = [[*(tensor.data_ptr() for tensor in tensors), copy] for *tensors, copy in lists]
    return addresses, [parameter.numel() for parameter in parameters]
