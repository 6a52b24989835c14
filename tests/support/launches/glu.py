"""Gated units on the halves of a fused projection and on tensors of their own."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.glu import glu


def _glu(
    rows: int, columns: int, dtype: torch.dtype, activation: str = "silu", *, fused: bool = True
) -> None:
    if fused:
        gate, up = torch.empty(rows, 2 * columns, dtype=dtype, device="meta").chunk(2, dim=-1)
    else:
        gate = up = torch.empty(rows, columns, dtype=dtype, device="meta")
    glu(gate, up, activation)


LAUNCHES = {
    "llama3-8b fused bf16": lambda: _glu(8192, 14_336, torch.bfloat16),
    "llama3-8b decode bf16": lambda: _glu(16, 14_336, torch.bfloat16, fused=False),
    "qwen2.5-0.5b bf16": lambda: _glu(8192, 4864, torch.bfloat16, fused=False),
    "smollm2-135m f32": lambda: _glu(8192, 1536, torch.float32, fused=False),
    "gemma tanh bf16": lambda: _glu(8192, 16_384, torch.bfloat16, "gelu_tanh"),
    "gelu bf16": lambda: _glu(8192, 4096, torch.bfloat16, "gelu"),
}
