"""Inputs of a layer's products in every kind of base weight, and plain PyTorch's answer."""

from __future__ import annotations

import torch

from fastrlhf import kernels

BASES = ("float32", "bfloat16", "float16", "int8", "nf4")


def layer(shape, base="float32", dtype=torch.float32, seed=0):
    """x `[N, in]`, a base weight `[out, in]` and a bias `[out]`."""
    rows, out, width = shape
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, width, generator=generator).to(dtype)
    weight = torch.randn(out, width, generator=generator) / max(width, 1) ** 0.5
    bias = torch.randn(out, generator=generator).to(dtype)
    if base in ("int8", "nf4"):
        return x, kernels.quantize(weight, base), bias
    return x, weight.to(getattr(torch, base)), bias


def to(device, *inputs):
    """The inputs on `device`."""
    return tuple(None if value is None else value.to(device) for value in inputs)


def in_dtype(weight, dtype):
    """The weight as a plain product in `dtype` takes it."""
    if isinstance(weight, torch.Tensor):
        return weight.to(dtype)
    with kernels.using("reference"):
        return kernels.dequantize(weight, torch.float32).to(dtype)


def exact_weight(weight):
    """What the weight stands for, in float64 (an int8 one without the rounding of code times scale)."""
    if isinstance(weight, torch.Tensor) or weight.format == "nf4":
        return in_dtype(weight, torch.float64)
    return weight.codes.double() * weight.scales.double()[:, None]
