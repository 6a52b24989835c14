"""Launcher of the CUDA kernels that go back from 8 and 4 bits."""

from __future__ import annotations

import torch

from fastrlhf.device.launch import launch
from fastrlhf.kernels import native
from fastrlhf.kernels.code_books import table
from fastrlhf.kernels.cuda.quantize import TYPES


def serves(codes, *_):
    """Why this backend cannot take tensors like `codes`, or None."""
    return None if codes.device.type == "cuda" else f"takes CUDA tensors, not {codes.device.type}"


def dequantize(codes, scales, scale_scales, offset, in_features, dtype):
    """See `fastrlhf.kernels.dequantize`."""
    parts = [None if part is None else part.contiguous() for part in (codes, scales, scale_scales, offset)]
    arguments, weight = dequantize_arguments(parts, in_features, dtype if dtype in TYPES else torch.float32)
    launch(native.module("_cuda"), "dequantize", codes.device, *arguments)
    return weight.to(dtype)


def dequantize_arguments(parts, in_features, dtype):
    """The kernel's arguments for contiguous parts, and the weight that it will fill."""
    codes, is_nf4 = parts[0], parts[0].dtype == torch.uint8
    weight = torch.empty(codes.shape[0], in_features, dtype=dtype, device=codes.device)
    books = [table(name, codes.device) if is_nf4 else None for name in ("nf4", "dynamic")]
    addresses = [0 if part is None else part.data_ptr() for part in (*parts, *books, weight)]
    return (TYPES[dtype], is_nf4, addresses, *weight.shape), weight
