"""Launcher of the Triton kernel of a layer's matrix product, for weights in 8 and 4 bits."""

from __future__ import annotations

import torch

from fastrlhf.kernels import triton as package
from fastrlhf.kernels.triton.lora_linear_product import layer_product


def serves(x, weight, *rest):
    """Why this kernel cannot take these tensors, or None."""
    if weight.dtype not in (torch.int8, torch.uint8):
        return "takes quantised weights: PyTorch's own product serves float ones"
    return package.serves(x, weight, *rest)


def linear(x, weight, scales, scale_scales, offset, bias):
    """See `fastrlhf.kernels.linear`."""
    return layer_product(x, (weight, scales, scale_scales, offset), x.shape[1], bias=bias)
