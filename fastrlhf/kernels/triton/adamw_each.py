"""AdamW of many tensors, one after the other."""

from __future__ import annotations

from fastrlhf.kernels.triton.adamw import adamw


def adamw_each(grad_norm, parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies, *numbers):
    """See `fastrlhf.kernels.adamw_each`."""
    copies = bfloat16_copies or [None] * len(parameters)
    for *tensors, copy in zip(parameters, gradients, exp_avgs, exp_avg_sqs, copies, strict=True):
        adamw(*tensors, copy, None, None, None, grad_norm, *numbers)
