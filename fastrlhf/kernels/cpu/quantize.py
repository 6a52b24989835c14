"""Launcher of the C++ kernels that quantise."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.code_books import table


def quantize(weight, format):
    """See `fastrlhf.kernels.quantize`. The same codes as the reference's, bit for bit."""
    weight = weight.contiguous()
    out, width = weight.shape
    module = native.module("_cpu")
    if format == "int8":
        codes, scales = torch.empty(out, width, dtype=torch.int8), weight.new_empty(out)
        module.quantize_int8(weight.data_ptr(), codes.data_ptr(), scales.data_ptr(), out, width)
        return codes, scales
    blocks = -(-width // 64)
    codes, maxima = torch.empty(out, 32 * blocks, dtype=torch.uint8), weight.new_empty(out, blocks)
    thresholds = table("nf4 thresholds", weight.device)
    module.quantize_nf4(
        weight.data_ptr(), codes.data_ptr(), maxima.data_ptr(), out, width, thresholds.data_ptr()
    )
    return codes, maxima
