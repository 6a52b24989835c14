"""Layers with adapters of rank 16: a whole batch of a large model in every kind of base, decoding, and small models."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.lora_linear import lora_linear
from fastrlhf.kernels.triton.lora_linear_backward import lora_linear_backward


def empty(*shape, dtype):
    return torch.empty(shape, dtype=dtype, device="meta")


def base(out, width, kind, dtype):
    """The four parts of a base weight in "float", "int8" or "nf4"."""
    if kind == "float":
        return empty(out, width, dtype=dtype), None, None, None
    if kind == "int8":
        return empty(out, width, dtype=torch.int8), empty(out, dtype=torch.float32), None, None
    blocks = -(-width // 64)
    return (
        empty(out, 32 * blocks, dtype=torch.uint8),
        empty(out, blocks, dtype=torch.uint8),
        empty(-(-out * blocks // 256), dtype=torch.float32),
        empty(dtype=torch.float32),
    )


def layer(rows, out, width, kind, dtype, adapter_dtype, *, backward=False, groups=2, rank=16):
    """A forward, and with `backward` the gradients of all but the weight."""
    x, parts = empty(rows, width, dtype=dtype), base(out, width, kind, dtype)
    adapters = (
        empty(groups, rank, width, dtype=adapter_dtype),
        empty(groups, out, rank, dtype=adapter_dtype),
        empty(groups + 1, dtype=torch.int32),
        empty(groups, dtype=torch.float32),
    )
    y, hidden = lora_linear(x, *parts, *adapters, None)
    if backward:
        lora_linear_backward(y, x, hidden, *parts, *adapters, True, False, False)


HALF, FULL = torch.bfloat16, torch.float32
LAUNCHES = {
    "llama3-8b up bf16": lambda: layer(4096, 14336, 4096, "float", HALF, HALF, backward=True),
    "llama3-8b up nf4": lambda: layer(4096, 14336, 4096, "nf4", HALF, FULL, backward=True),
    "llama3-8b up int8": lambda: layer(4096, 14336, 4096, "int8", HALF, FULL, backward=True),
    "llama3-8b up nf4, decoding 16": lambda: layer(16, 14336, 4096, "nf4", HALF, FULL),
    "qwen2.5-0.5b down f16": lambda: layer(2048, 896, 4864, "float", torch.float16, FULL),
    "smollm2-135m down f32": lambda: layer(512, 576, 1536, "float", FULL, FULL, backward=True),
}
