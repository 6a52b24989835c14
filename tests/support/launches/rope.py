"""Rotation of the views of a fused projection."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.rope import rope


def heads(tokens: int, query_heads: int, key_heads: int, width: int, rotated: int, dtype: torch.dtype):
    """Query and key as views of a fused projection, cosines and sines."""
    fused = torch.empty(tokens, query_heads + 2 * key_heads, width, dtype=dtype, device="meta")
    angles = torch.empty(tokens, rotated, dtype=dtype, device="meta")
    return fused[:, :query_heads], fused[:, query_heads : query_heads + key_heads], angles, angles


LAUNCHES = {
    "llama3-8b bf16": lambda: rope(*heads(8192, 32, 8, 128, 128, torch.bfloat16), False),
    "llama3-8b backward bf16": lambda: rope(*heads(8192, 32, 8, 128, 128, torch.bfloat16), True),
    "qwen2.5-0.5b bf16": lambda: rope(*heads(8192, 14, 2, 64, 64, torch.bfloat16), False),
    "smollm2-135m f32": lambda: rope(*heads(8192, 9, 3, 64, 64, torch.float32), False),
    "pythia-1b part bf16": lambda: rope(*heads(8192, 8, 8, 256, 64, torch.bfloat16), False),
}
