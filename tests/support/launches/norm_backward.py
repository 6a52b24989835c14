"""Gradients of norms, with a frozen weight and with a trainable one."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.norm_backward import norm_backward


def _backward(
    rows: int, columns: int, dtype: torch.dtype, *, trainable: bool = True, centred: bool = False
) -> None:
    summed = torch.empty(rows, columns, dtype=dtype, device="meta")
    weight = torch.empty(columns, dtype=dtype, device="meta")
    statistic = torch.empty(rows, device="meta")
    norm_backward(summed, summed, summed, weight, statistic if centred else None, statistic, 0.0, trainable)


LAUNCHES = {
    "llama3-8b bf16": lambda: _backward(8192, 4096, torch.bfloat16),
    "llama3-8b frozen bf16": lambda: _backward(8192, 4096, torch.bfloat16, trainable=False),
    "qwen2.5-0.5b bf16": lambda: _backward(8192, 896, torch.bfloat16),
    "smollm2-135m f32": lambda: _backward(8192, 576, torch.float32),
    "smollm2-135m frozen f32": lambda: _backward(8192, 576, torch.float32, trainable=False),
    "gpt2 layer f32": lambda: _backward(8192, 768, torch.float32, centred=True),
    "pythia-12b layer bf16": lambda: _backward(8192, 5120, torch.bfloat16, centred=True),
    "llama3-70b bf16": lambda: _backward(8192, 8192, torch.bfloat16),
}
