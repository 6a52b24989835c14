"""Launcher of the CUDA kernels that quantise."""

from __future__ import annotations

import torch

from fastrlhf.device.launch import launch
from fastrlhf.kernels import native
from fastrlhf.kernels.code_books import table

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def serves(weight, *_):
    """Why this backend cannot take `weight`, or None."""
    if weight.device.type != "cuda":
        return f"takes CUDA tensors, not {weight.device.type}"
    if weight.dtype not in TYPES:
        return f"takes float32, bfloat16 and float16, not {str(weight.dtype).removeprefix('torch.')}"
    return None


def quantize(weight, format):
    """See `fastrlhf.kernels.quantize`. The same codes as the reference's, bit for bit."""
    weight = weight.contiguous()  # held by name until the launch
    arguments, outputs = quantize_arguments(weight, format)
    launch(native.module("_cuda"), "quantize", weight.device, *arguments)
    return outputs


def quantize_arguments(weight, format):
    """The kernel's arguments for a contiguous weight, and the tensors that it will fill."""
    (out, width), device = weight.shape, weight.device
    if format == "int8":
        codes = torch.empty(out, width, dtype=torch.int8, device=device)
        scales, thresholds = torch.empty(out, dtype=torch.float32, device=device), None
    else:
        blocks = -(-width // 64)
        codes = torch.empty(out, 32 * blocks, dtype=torch.uint8, device=device)
        scales = torch.empty(out, blocks, dtype=torch.float32, device=device)
        thresholds = table("nf4 thresholds", device)
    tensors = weight, codes, scales, thresholds
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    return (TYPES[weight.dtype], format == "nf4", addresses, out, width), (codes, scales)
