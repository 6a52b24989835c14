"""The end of a decoding step, with tokens to mark and without."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.end_step import end_step


def _step(rows: int, vocabulary: int | None) -> None:
    floats, whole, lengths = (
        torch.empty(rows, dtype=dtype, device="meta") for dtype in (torch.float32, torch.int64, torch.int32)
    )
    seen = None if vocabulary is None else torch.empty(rows, vocabulary, dtype=torch.bool, device="meta")
    end_step(floats, floats, whole, whole, lengths, seen, whole, floats, floats, 4095)


LAUNCHES = {
    "64 rows": lambda: _step(64, None),
    "64 rows, llama3-8b's tokens seen": lambda: _step(64, 128_256),
}
