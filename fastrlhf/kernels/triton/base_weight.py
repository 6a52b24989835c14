"""Tiles of a layer's base weight inside a kernel, whatever it is kept in, and what a launcher hands over for that."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.kernels.code_books import table

FLOAT, INT8, NF4 = 0, 1, 2
NF4_BLOCK = tl.constexpr(64)
SCALE_BLOCK = tl.constexpr(256)


def base_arguments(weight, scales, scale_scales, offset):
    """The pointers that `load_base` takes, and its KIND. A pointer that a kind has no use for is the weight's."""
    if weight.dtype == torch.uint8:
        books = table("nf4", weight.device), table("dynamic", weight.device)
        parts = weight, scales, scale_scales, offset
        return (*(part.contiguous() for part in parts), *books), NF4
    weight = weight.contiguous()
    if weight.dtype == torch.int8:
        return (weight, scales.contiguous(), weight, weight, weight, weight), INT8
    return (weight,) * 6, FLOAT


@triton.jit
def load_base(
    weight,
    scales,
    scale_scales,
    offset,
    nf4,
    dynamic,
    first_out,
    first_in,
    out,
    width,
    KIND: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """Rows from `first_out`, columns from `first_in` (a multiple of BLOCK_IN): `[BLOCK_OUT, BLOCK_IN]`, zero outside.

    What was quantised is float32 until it is rounded once to DTYPE, as `dequantize` has it.
    """
    o = first_out + tl.arange(0, BLOCK_OUT).to(tl.int64)
    inside = (o < out)[:, None]
    if KIND == 2:
        blocks = tl.cdiv(width, NF4_BLOCK)
        byte = first_in // 2 + tl.arange(0, BLOCK_IN // 2)
        has_byte = inside & (byte < blocks * (NF4_BLOCK // 2))[None, :]
        pairs = tl.load(
            weight + o[:, None] * (blocks * (NF4_BLOCK // 2)) + byte[None, :], mask=has_byte, other=0
        )
        pairs = pairs.to(tl.int32)
        values = tl.join(tl.load(nf4 + (pairs >> 4)), tl.load(nf4 + (pairs & 15)))
        block = first_in // NF4_BLOCK + tl.arange(0, BLOCK_IN // NF4_BLOCK)
        index = o[:, None] * blocks + block[None, :]
        has_block = inside & (block < blocks)[None, :]
        code = tl.load(scales + index, mask=has_block, other=0).to(tl.int32)
        of_scales = tl.load(scale_scales + index // SCALE_BLOCK, mask=has_block, other=0.0)
        maxima = tl.where(has_block, tl.load(dynamic + code) * of_scales + tl.load(offset), 0.0)
        tile = values.reshape(BLOCK_OUT, BLOCK_IN // NF4_BLOCK, NF4_BLOCK) * maxima[:, :, None]
        return tile.reshape(BLOCK_OUT, BLOCK_IN).to(DTYPE)
    i = first_in + tl.arange(0, BLOCK_IN)
    mask = inside & (i < width)[None, :]
    tile = tl.load(weight + o[:, None] * width + i[None, :], mask=mask, other=0)
    if KIND == 1:
        scale = tl.load(scales + o, mask=o < out, other=0.0)
        return (tile.to(tl.float32) * scale[:, None]).to(DTYPE)
    return tile.to(DTYPE)
