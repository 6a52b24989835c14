"""Launcher of the C++ kernel of AdamW for many tensors."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.adamw_numbers import adamw_numbers


def adamw_each(grad_norm, parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies, *numbers):
    """See `fastrlhf.kernels.adamw_each`. One call from Python for all."""
    copies = [0] * len(parameters)
    if bfloat16_copies:
        copies = [copy.data_ptr() for copy in bfloat16_copies]
    norm = grad_norm.data_ptr()
    native.module("_cpu").adamw_each(
        gradients[0].dtype == torch.bfloat16,
        [
            [*(tensor.data_ptr() for tensor in tensors), copy, 0, 0, 0, norm]
            for *tensors, copy in zip(parameters, gradients, exp_avgs, exp_avg_sqs, copies, strict=True)
        ],
        [parameter.numel() for parameter in parameters],
        adamw_numbers(*numbers),
    )
