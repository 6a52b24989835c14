"""Layers of quantised weights without adapters."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.linear import linear
from tests.support.launches.lora_linear import base, empty


def _layer(rows, out, width, kind, dtype):
    linear(empty(rows, width, dtype=dtype), *base(out, width, kind, dtype), None)


LAUNCHES = {
    "llama3-8b q bf16 nf4": lambda: _layer(4096, 4096, 4096, "nf4", torch.bfloat16),
    "llama3-8b q bf16 int8, decoding 8": lambda: _layer(8, 4096, 4096, "int8", torch.bfloat16),
    "smollm2-135m up f32 int8": lambda: _layer(512, 1536, 576, "int8", torch.float32),
}
