"""Launcher of the C++ kernels that go back from 8 and 4 bits."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cpu.linear import dequantize_rows


def serves(codes, *_):
    """Why this backend cannot take tensors like `codes`, or None."""
    return None if codes.device.type == "cpu" else f"takes CPU tensors, not {codes.device.type}"


def dequantize(codes, scales, scale_scales, offset, in_features, dtype):
    """See `fastrlhf.kernels.dequantize`."""
    weight = torch.empty(codes.shape[0], in_features, dtype=torch.float32)
    held = [None if part is None else part.contiguous() for part in (scales, scale_scales, offset)]
    if weight.numel():
        dequantize_rows(codes.contiguous(), *held, 0, weight)
    return weight.to(dtype)
