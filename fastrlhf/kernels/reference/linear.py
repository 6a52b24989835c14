"""The matrix product of a layer, as PyTorch has it."""

from __future__ import annotations

import torch

from fastrlhf.kernels.reference.dequantize import dequantize


def linear(x, weight, scales, scale_scales, offset, bias):
    """See `fastrlhf.kernels.linear`."""
    return torch.nn.functional.linear(x, base(x, weight, scales, scale_scales, offset), bias)


def base(x, weight, scales, scale_scales, offset):
    """The base weight `[out, in]` in the dtype of x."""
    if scales is None:
        return weight.to(x.dtype)
    return dequantize(weight, scales, scale_scales, offset, x.shape[1], x.dtype)
