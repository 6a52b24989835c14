"""Prompts and responses of PPO, packed: a rollout's prefill and the training forward."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.attention import attention


def inputs(tokens: int, sequences: int, heads: int, key_heads: int, width: int, dtype: torch.dtype) -> list:
    """Query, key, value (views of a fused projection), cu_seqlens."""
    fused = torch.empty(tokens, heads + 2 * key_heads, width, dtype=dtype, device="meta")
    cu_seqlens = torch.empty(sequences + 1, dtype=torch.int32, device="meta")
    return [*fused.split([heads, key_heads, key_heads], dim=1), cu_seqlens]


def _forward(*shape, padded: bool = False, window: int | None = None, softcap: float | None = None) -> None:
    query, key, value, cu_seqlens = inputs(*shape)
    skip = cu_seqlens[1:] if padded else None
    attention(query, key, value, cu_seqlens, skip, 2048, query.shape[2] ** -0.5, window, softcap)


LAUNCHES = {
    "llama3-8b bf16": lambda: _forward(16_384, 16, 32, 8, 128, torch.bfloat16),
    "qwen2.5-0.5b bf16, left padding": lambda: _forward(16_384, 16, 14, 2, 64, torch.bfloat16, padded=True),
    "smollm2-135m f32": lambda: _forward(16_384, 16, 9, 3, 64, torch.float32),
    "head dimension 80 bf16": lambda: _forward(16_384, 16, 32, 32, 80, torch.bfloat16),
    "gemma2-2b bf16, window, soft-cap": lambda: _forward(
        16_384, 16, 8, 4, 256, torch.bfloat16, window=1024, softcap=50.0
    ),
    "head dimension 256 f32": lambda: _forward(16_384, 16, 8, 4, 256, torch.float32),
    "llama3-8b's heads f32": lambda: _forward(16_384, 16, 32, 8, 128, torch.float32),
}
