"""A decoding step's queries, keys and values, of separate projections and of a fused one."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.rope_cache import rope_cache


def _step(
    tokens: int, query_heads: int, key_heads: int, width: int, rotated: int, dtype: torch.dtype, fused: bool
) -> None:
    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=of, device="meta")

    if fused:
        heads = empty(tokens, query_heads + 2 * key_heads, width)
        parts = heads.split([query_heads, key_heads, key_heads], dim=1)
    else:
        parts = [empty(tokens, count, width) for count in (query_heads, key_heads, key_heads)]
    angles = [empty(tokens, rotated, of=torch.float32) for _ in range(2)] if rotated else [None, None]
    caches = [empty(4096, key_heads, width) for _ in range(2)]
    rope_cache(*parts, *angles, empty(tokens, of=torch.int64), *caches)


LAUNCHES = {
    "llama3-8b bf16": lambda: _step(64, 32, 8, 128, 128, torch.bfloat16, False),
    "qwen2.5-0.5b fused f16": lambda: _step(16, 14, 2, 64, 64, torch.float16, True),
    "smollm2-135m f32": lambda: _step(8, 9, 3, 64, 64, torch.float32, False),
    "gpt2 without angles f32": lambda: _step(8, 12, 12, 64, 0, torch.float32, True),
}
