"""AdamW of many tensors, one after the other."""

from __future__ import annotations

from fastrlhf.kernels.reference.adamw import adamw


def adamw_each(grad_norm, parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies, *numbers):
    """See `fastrlhf.kernels.adamw_each`."""
    copies = bfloat16_copies or [None] * len(parameters)
    for *tensors, copy in zip(parameters, gradients, exp_avgs, exp_avg_sqs, copies, strict=True):
        # a scalar would be computed in the dtype of the numbers
        flat = [None if tensor is None else tensor.view(-1) for tensor in (*tensors, copy)]
        adamw(*flat, None, None, None, grad_norm, *numbers)
