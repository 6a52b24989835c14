"""Norms of whole batches and of one decoding step, at the widths of real models."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.norm import norm


def _norm(rows: int, columns: int, dtype: torch.dtype, *, residual: bool = True, bias: bool = False) -> None:
    hidden_states = torch.empty(rows, columns, dtype=dtype, device="meta")
    weight = torch.empty(columns, dtype=dtype, device="meta")
    norm(
        hidden_states,
        weight,
        weight if bias else None,
        hidden_states if residual else None,
        1e-5,
        0.0,
        not bias,
    )


LAUNCHES = {
    "llama3-8b bf16": lambda: _norm(8192, 4096, torch.bfloat16),
    "llama3-8b decode bf16": lambda: _norm(16, 4096, torch.bfloat16),
    "qwen2.5-0.5b bf16": lambda: _norm(8192, 896, torch.bfloat16),
    "smollm2-135m f32": lambda: _norm(8192, 576, torch.float32),
    "qwen3 heads bf16": lambda: _norm(8192 * 32, 128, torch.bfloat16, residual=False),
    "gpt2 layer f32": lambda: _norm(8192, 768, torch.float32, bias=True),
    "llama3-70b bf16": lambda: _norm(8192, 8192, torch.bfloat16),
    "pythia-12b layer bf16": lambda: _norm(8192, 5120, torch.bfloat16, bias=True),
}
