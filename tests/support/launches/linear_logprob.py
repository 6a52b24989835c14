"""Launches of `linear_logprob` and its backward."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.linear_logprob import linear_logprob
from fastrlhf.kernels.triton.linear_logprob_backward import linear_logprob_backward


def _head(rows, width, words, dtype):
    def empty(*shape, dtype=dtype):
        return torch.empty(shape, dtype=dtype, device="meta")

    return empty(rows, width), empty(words, width), empty(rows, dtype=torch.int64), None


def _forward(*shape, slopes=0):
    return lambda: linear_logprob(*_head(*shape), 0.7, None, slopes)


def _backward(rows, *shape):
    float32, float64 = (
        torch.empty(rows, dtype=dtype, device="meta") for dtype in (torch.float32, torch.float64)
    )
    head = _head(rows, *shape)
    return lambda: linear_logprob_backward(float32, float32, *head, float32, float64, 0.7, None, True)


LAUNCHES = {
    "llama3-8b 4096 tokens bf16": _forward(4096, 4096, 128_256, torch.bfloat16),
    "qwen2.5-0.5b 4096 tokens bf16, slopes": _forward(4096, 896, 151_936, torch.bfloat16, slopes=2),
    "llama3-8b 4096 tokens bf16, backward": _backward(4096, 4096, 128_256, torch.bfloat16),
    "smollm2-135m 1024 tokens f32, backward": _backward(1024, 576, 49_152, torch.float32),
    "smollm2-135m 1024 tokens f32": _forward(1024, 576, 49_152, torch.float32),
}
