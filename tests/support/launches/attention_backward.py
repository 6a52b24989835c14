"""The backward of the launches of `attention`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.attention_backward import attention_backward
from tests.support.launches.attention import inputs


def _backward(*shape, padded: bool = False, window: int | None = None, softcap: float | None = None) -> None:
    query, key, value, cu_seqlens = inputs(*shape)
    output = torch.empty(query.shape, dtype=query.dtype, device="meta")
    lse = torch.empty(query.shape[:2], device="meta")
    skip = cu_seqlens[1:] if padded else None
    scale = query.shape[2] ** -0.5
    attention_backward(output, query, key, value, output, lse, cu_seqlens, skip, 2048, scale, window, softcap)


LAUNCHES = {
    "llama3-8b bf16": lambda: _backward(16_384, 16, 32, 8, 128, torch.bfloat16),
    "qwen2.5-0.5b bf16, left padding": lambda: _backward(16_384, 16, 14, 2, 64, torch.bfloat16, padded=True),
    "smollm2-135m f32": lambda: _backward(16_384, 16, 9, 3, 64, torch.float32),
    "head dimension 80 bf16": lambda: _backward(16_384, 16, 32, 32, 80, torch.bfloat16),
    "gemma2-2b bf16, window, soft-cap": lambda: _backward(
        16_384, 16, 8, 4, 256, torch.bfloat16, window=1024, softcap=50.0
    ),
    "head dimension 256 f32": lambda: _backward(16_384, 16, 8, 4, 256, torch.float32),
    "llama3-8b's heads f32": lambda: _backward(16_384, 16, 32, 8, 128, torch.float32),
}
