"""Weights on their way to 8 and 4 bits."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.quantize import quantize


def _weight(out, width, dtype, format):
    quantize(torch.empty(out, width, dtype=dtype, device="meta"), format)


LAUNCHES = {
    "llama3-8b up bf16 to nf4": lambda: _weight(14336, 4096, torch.bfloat16, "nf4"),
    "llama3-8b up bf16 to int8": lambda: _weight(14336, 4096, torch.bfloat16, "int8"),
    "smollm2-135m up f32 to nf4": lambda: _weight(1536, 576, torch.float32, "nf4"),
    "smollm2-135m up f32 to int8": lambda: _weight(1536, 576, torch.float32, "int8"),
}
