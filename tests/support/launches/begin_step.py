"""The beginning of a decoding step: of rotary models, and of one with embedded positions."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.begin_step import begin_step


def _step(
    rows: int, vocabulary: int, width: int, rotated: int, dtype: torch.dtype, positions: int = 4096
) -> None:
    def empty(*shape: int, of: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(*shape, dtype=of, device="meta")

    state = empty(rows, of=torch.int64), empty(rows, of=torch.int32), empty(rows, 256, of=torch.int32)
    angles = [empty(positions, rotated, of=torch.float32) for _ in range(2)] if rotated else [None, None]
    embedded = None if rotated else empty(positions, width)
    begin_step(empty(vocabulary, width), *state, 16, 1.0, embedded, *angles)


LAUNCHES = {
    "llama3-8b bf16": lambda: _step(64, 128_256, 4096, 128, torch.bfloat16),
    "qwen2.5-0.5b f16": lambda: _step(16, 151_936, 896, 64, torch.float16),
    "smollm2-135m f32": lambda: _step(8, 49_152, 576, 64, torch.float32),
    "gpt2 f32": lambda: _step(8, 50_257, 768, 0, torch.float32, positions=1024),
}
