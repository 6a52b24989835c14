"""Weights on their way back from 8 and 4 bits."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.dequantize import dequantize
from tests.support.launches.lora_linear import base


def _weight(out, width, kind, dtype):
    dequantize(*base(out, width, kind, dtype), width, dtype)


LAUNCHES = {
    "llama3-8b up nf4 to bf16": lambda: _weight(14336, 4096, "nf4", torch.bfloat16),
    "llama3-8b up int8 to bf16": lambda: _weight(14336, 4096, "int8", torch.bfloat16),
    "smollm2-135m up nf4 to f32": lambda: _weight(1536, 576, "nf4", torch.float32),
}
