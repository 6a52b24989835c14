"""Gradients of gated units."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.glu_backward import glu_backward


def _backward(rows: int, columns: int, dtype: torch.dtype, activation: str = "silu") -> None:
    gradient = torch.empty(rows, columns, dtype=dtype, device="meta")
    gate, up = torch.empty(rows, 2 * columns, dtype=dtype, device="meta").chunk(2, dim=-1)
    glu_backward(gradient, gate, up, activation)


LAUNCHES = {
    "llama3-8b bf16": lambda: _backward(8192, 14_336, torch.bfloat16),
    "qwen2.5-0.5b bf16": lambda: _backward(8192, 4864, torch.bfloat16),
    "smollm2-135m f32": lambda: _backward(8192, 1536, torch.float32),
    "gemma tanh bf16": lambda: _backward(8192, 16_384, torch.bfloat16, "gelu_tanh"),
    "gelu bf16": lambda: _backward(8192, 4096, torch.bfloat16, "gelu"),
}
