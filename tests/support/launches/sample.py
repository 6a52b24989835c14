"""One step of decoding: the last position's logits of a batch."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.sample import sample

NUMBERS = (2**40, 17, 0.7, 50, 0.95, 0.02, 1.1)  # seed, step, temperature, top-k, top-p, min-p, penalty


def _sample(
    rows: int, vocabulary: int, dtype: torch.dtype, restricted: bool = False, graph: bool = False
) -> None:
    """`graph`: what changes from step to step, and from row to row, lies in tensors."""
    logits = torch.empty(rows, vocabulary, dtype=dtype, device="meta")
    row_ids = torch.empty(rows, dtype=torch.int64, device="meta")
    mask = torch.empty(rows, vocabulary, dtype=torch.bool, device="meta") if restricted else None
    whole, real = row_ids, torch.empty(rows, device="meta")
    of_rows = [whole, whole, real, whole, real, real, real] if graph else [None] * 7
    sample(logits, row_ids, *NUMBERS, mask, mask, of_rows)


LAUNCHES = {
    "llama3-8b bf16": lambda: _sample(64, 128_256, torch.bfloat16),
    "llama3-8b bf16, penalty, bans and each row's settings": lambda: _sample(
        64, 128_256, torch.bfloat16, restricted=True, graph=True
    ),
    "qwen2.5-0.5b f16": lambda: _sample(64, 151_936, torch.float16),
    "smollm2-135m f32": lambda: _sample(16, 49_152, torch.float32),
    "a toy's vocabulary f32": lambda: _sample(16, 101, torch.float32),
}
