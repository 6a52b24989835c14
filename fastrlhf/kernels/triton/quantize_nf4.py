"""Quantises to NF4: a few blocks of 64 a program."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.code_books import table

CONFIGS = [{"BLOCKS": 4, "num_warps": 1}, {"BLOCKS": 16, "num_warps": 4}]


def choose_config(blocks: int) -> dict:
    """Small programs where there are few blocks."""
    return CONFIGS[0 if blocks < 4096 else 1]


def quantize_nf4(weight):
    """Codes `[out, 32 ceil(in / 64)]` and the blocks' maxima `[out, ceil(in / 64)]` of a contiguous weight."""
    out, width = weight.shape
    blocks = -(-width // 64)
    codes = torch.empty(out, 32 * blocks, dtype=torch.uint8, device=weight.device)
    maxima = torch.empty(out, blocks, dtype=torch.float32, device=weight.device)
    config = choose_config(out * blocks)
    arguments = weight, codes, maxima, table("nf4 thresholds", weight.device), out * blocks, width, blocks
    launch_triton(
        nf4_kernel, (triton.cdiv(out * blocks, config["BLOCKS"]),), weight.device, *arguments, **config
    )
    return codes, maxima


@triton.jit
def nf4_code(x, thresholds):
    """The number of thresholds below x."""
    code = tl.zeros(x.shape, dtype=tl.int32)
    for i in tl.static_range(15):
        code += (x > tl.load(thresholds + i)).to(tl.int32)
    return code


@triton.jit
def nf4_kernel(weight, codes, maxima, thresholds, total, width, blocks, BLOCKS: tl.constexpr):
    """BLOCKS blocks of 64 a program; the halves of a byte are its even and its odd columns."""
    index = tl.program_id(0).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    row, block = index // blocks, index % blocks
    pair, column = tl.arange(0, 32), block[:, None] * 64 + tl.arange(0, 64)[None, :]
    is_block = (index < total)[:, None]
    w = tl.load(weight + row[:, None] * width + column, mask=is_block & (column < width), other=0.0)
    even, odd = tl.split(w.to(tl.float32).reshape(BLOCKS, 32, 2))
    size = tl.maximum(tl.abs(even), tl.abs(odd))
    broken = tl.max(((even != even) | (odd != odd)).to(tl.int32), axis=1) > 0
    most = tl.where(broken, float("nan"), tl.max(size, axis=1))
    tl.store(maxima + index, most, mask=index < total)
    divisor = tl.where(most > 0, most, 1.0)[:, None] + tl.zeros((BLOCKS, 32), dtype=tl.float32)
    high = nf4_code(tl.div_rn(even, divisor), thresholds)
    low = nf4_code(tl.div_rn(odd, divisor), thresholds)
    tl.store(codes + index[:, None] * 32 + pair[None, :], (high * 16 + low).to(tl.uint8), mask=is_block)
