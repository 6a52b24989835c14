"""Quantises to int8: one program a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton

CONFIGS = [{"BLOCK": 256, "num_warps": 2}, {"BLOCK": 1024, "num_warps": 4}]


def choose_config(width: int) -> dict:
    """The smaller block for short rows."""
    return CONFIGS[0 if width <= 1024 else 1]


def quantize_int8(weight):
    """Codes `[out, in]` and scales `[out]` of a contiguous weight."""
    out, width = weight.shape
    codes = torch.empty(out, width, dtype=torch.int8, device=weight.device)
    scales = torch.empty(out, dtype=torch.float32, device=weight.device)
    launch_triton(int8_kernel, (out,), weight.device, weight, codes, scales, width, **choose_config(width))
    return codes, scales


@triton.jit
def int8_kernel(weight, codes, scales, width, BLOCK: tl.constexpr):
    """A row a program: its maximum, then its codes."""
    start = tl.program_id(0).to(tl.int64) * width
    most = tl.zeros((BLOCK,), dtype=tl.float32)
    for first in range(0, width, BLOCK):
        i = first + tl.arange(0, BLOCK)
        w = tl.abs(tl.load(weight + start + i, mask=i < width, other=0.0).to(tl.float32))
        most = tl.where(
            (w > most) | (w != w), w, most
        )  # a NaN stays: `maximum` of it is not the same everywhere
    any_nan = tl.max((most != most).to(tl.int32), axis=0)
    top = tl.where(any_nan > 0, float("nan"), tl.max(most, axis=0))
    scale = tl.div_rn(top, 127.0)
    tl.store(scales + tl.program_id(0), scale)
    for first in range(0, width, BLOCK):
        i = first + tl.arange(0, BLOCK)
        w = tl.load(weight + start + i, mask=i < width, other=0.0).to(tl.float32)
        code = tl.div_rn(w, tl.where(scale > 0, scale, 1.0) + tl.zeros((BLOCK,), dtype=tl.float32))
        # adding 1.5 * 2^23 rounds to an integer, halves to even
        code = tl.minimum(tl.maximum((code + 12582912.0) - 12582912.0, -127.0), 127.0)
        tl.store(codes + start + i, tl.where(scale > 0, code, 0.0).to(tl.int8), mask=i < width)
