"""A step of generation: many rows of a few hundred tokens, and few rows of many."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.decode_attention import decode_attention


def _step(
    rows: int, positions: int, heads: int, key_heads: int, width: int, dtype: torch.dtype, **options
) -> None:
    query = torch.empty(rows, heads, width, dtype=dtype, device="meta")
    caches = torch.empty(2, 4096, 16, key_heads, width, dtype=dtype, device="meta").unbind(0)
    table = torch.empty(rows, positions // 16, dtype=torch.int32, device="meta")
    options = {"scale": width**-0.5, "window": None, "softcap": None} | options
    decode_attention(query, *caches, table, table[:, 0], *options.values())


LAUNCHES = {
    "llama3-8b 8 rows of 8192 bf16": lambda: _step(8, 8192, 32, 8, 128, torch.bfloat16),
    "llama3-8b 256 rows of 1024 bf16": lambda: _step(256, 1024, 32, 8, 128, torch.bfloat16),
    "qwen2.5-0.5b 64 rows of 1024 bf16": lambda: _step(64, 1024, 14, 2, 64, torch.bfloat16),
    "smollm2-135m 16 rows of 1024 f32": lambda: _step(16, 1024, 9, 3, 64, torch.float32),
    "gemma2-2b 16 rows of 8192 bf16, window, soft-cap": lambda: _step(
        16, 8192, 8, 4, 256, torch.bfloat16, window=4096, softcap=50.0
    ),
    "head dimension 80 bf16": lambda: _step(16, 2048, 32, 32, 80, torch.bfloat16),
    "head dimension 128 f32": lambda: _step(16, 2048, 32, 8, 128, torch.float32),
    "head dimension 256 f32": lambda: _step(16, 2048, 8, 4, 256, torch.float32),
}
