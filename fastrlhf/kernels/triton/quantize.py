"""Triton kernels that quantise to int8 and NF4, and their launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.code_books import table

CONFIGS = {
    "int8": {"BLOCK": 1024, "num_warps": 4, "num_stages": 1},
    "nf4": {"BLOCKS": 16, "num_warps": 4, "num_stages": 1},
}


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
    pair = tl.arange(0, 32)
    column = block[:, None] * 64 + 2 * pair[None, :]
    at = weight + row[:, None] * width + column
    is_block = (index < total)[:, None]
    even = tl.load(at, mask=is_block & (column < width), other=0.0).to(tl.float32)
    odd = tl.load(at + 1, mask=is_block & (column + 1 < width), other=0.0).to(tl.float32)
    size = tl.maximum(tl.abs(even), tl.abs(odd))
    broken = tl.max(((even != even) | (odd != odd)).to(tl.int32), axis=1) > 0
    most = tl.where(broken, float("nan"), tl.max(size, axis=1))
    tl.store(maxima + index, most, mask=index < total)
    divisor = tl.where(most > 0, most, 1.0)[:, None] + tl.zeros((BLOCKS, 32), dtype=tl.float32)
    high = nf4_code(tl.div_rn(even, divisor), thresholds)
    low = nf4_code(tl.div_rn(odd, divisor), thresholds)
    tl.store(codes + index[:, None] * 32 + pair[None, :], (high * 16 + low).to(tl.uint8), mask=is_block)


def quantize(weight, format):
    """See `fastrlhf.kernels.quantize`. The same codes as the reference's, bit for bit."""
    weight = weight.contiguous()
    out, width = weight.shape
    if format == "int8":
        codes = torch.empty(out, width, dtype=torch.int8, device=weight.device)
        scales = torch.empty(out, dtype=torch.float32, device=weight.device)
        launch_triton(int8_kernel, (out,), weight.device, weight, codes, scales, width, **CONFIGS["int8"])
        return codes, scales
    blocks = -(-width // 64)
    codes = torch.empty(out, 32 * blocks, dtype=torch.uint8, device=weight.device)
    maxima = torch.empty(out, blocks, dtype=torch.float32, device=weight.device)
    config, thresholds = CONFIGS["nf4"], table("nf4 thresholds", weight.device)
    grid = (triton.cdiv(out * blocks, config["BLOCKS"]),)
    arguments = weight, codes, maxima, thresholds, out * blocks, width, blocks
    launch_triton(nf4_kernel, grid, weight.device, *arguments, **config)
    return codes, maxima
