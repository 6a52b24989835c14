"""The matrix product of a layer on the CPU: thin ones by the C++ kernel, others by the provider that was measured."""

from __future__ import annotations

import torch

from fastrlhf.kernels import cpu, native, products
from fastrlhf.kernels.code_books import table

MAX_THIN_BATCH = 32
# A tile of a quantised weight in float32, and what a thread's part of one takes where it is read once only.
TILE_BYTES, THIN_TILE_BYTES = 4 << 20, 256 << 10


def serves(first: torch.Tensor, *_: torch.Tensor) -> str | None:
    """Why this backend cannot take an activation or gradient like `first`, or None; the weight may have any dtype."""
    return cpu.serves(first)


def linear(x, weight, scales, scale_scales, offset, bias):
    """See `fastrlhf.kernels.linear`. A weight that is not float32 is converted, or dequantised, tile by tile."""
    rows, (out, width) = x.shape[0], (weight.shape[0], x.shape[1])
    thin = rows <= MAX_THIN_BATCH
    if 0 in (rows, out, width):
        return torch.nn.functional.linear(x, x.new_zeros(out, width), bias)
    if weight.dtype == torch.float32:
        return (
            thin_linear(x, weight, bias)
            if thin
            else products.forward(x.contiguous(), weight.contiguous(), bias)
        )
    if thin and weight.dtype == torch.int8:
        return thin_linear(x, weight, bias, scales)
    y = x.new_empty(rows, out)
    x = x.contiguous()
    for at, tile in tiles(x, weight, scales, scale_scales, offset, THIN_TILE_BYTES if thin else TILE_BYTES):
        part = None if bias is None else bias[at]
        y[:, at] = thin_linear(x, tile, part) if thin else products.forward(x, tile, part, keep=False)
    return y


def thin_linear(x, weight, bias=None, scales=None, *, transposed=False):
    """`x weight^T + bias`; the weight float32, or int8 with its scales, or float32 `[in, out]` if `transposed`.

    Made for at most 32 rows of x; more are done so many at a time, and a row has the same bits whatever their number.
    """
    out, width = reversed(weight.shape) if transposed else weight.shape
    assert x.shape[1] == width
    rows = x.shape[0]
    # Held by name until the kernel returns: a contiguous copy dies with its last reference.
    x, weight = x.contiguous(), weight.contiguous()
    scales = None if scales is None else scales.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty(rows, out)
    native.module("_cpu").thin_linear(
        x.data_ptr(),
        weight.data_ptr() if scales is None else 0,
        0 if scales is None else weight.data_ptr(),
        0 if scales is None else scales.data_ptr(),
        0 if bias is None else bias.data_ptr(),
        y.data_ptr(),
        rows,
        out,
        width,
        transposed,
    )
    return y


def tiles(x, weight, scales, scale_scales, offset, tile_bytes):
    """Slices of the weight's rows with those rows in float32, one at a time, in a buffer that is used again."""
    rows = max(1, tile_bytes // (4 * x.shape[1]))
    buffer = x.new_empty(min(rows, weight.shape[0]), x.shape[1])
    weight = weight.contiguous()
    held = [None if part is None else part.contiguous() for part in (scales, scale_scales, offset)]
    for start in range(0, weight.shape[0], rows):
        at = slice(start, min(start + rows, weight.shape[0]))
        tile = buffer[: at.stop - at.start]
        dequantize_rows(weight, *held, start, tile)
        yield at, tile


def dequantize_rows(weight, scales, scale_scales, offset, start, tile):
    """Rows of the weight from `start` on into `tile` `[rows, in]`, float32; all contiguous."""
    if weight.dtype == torch.int8:
        codes, of_rows = weight[start:], scales[start:]
        native.module("_cpu").dequantize_int8(
            codes.data_ptr(), of_rows.data_ptr(), tile.data_ptr(), *tile.shape
        )
    elif weight.dtype == torch.uint8:
        parts = (
            weight,
            scales,
            scale_scales,
            offset,
            table("nf4", weight.device),
            table("dynamic", weight.device),
        )
        addresses = [part.data_ptr() for part in parts]
        native.module("_cpu").dequantize_nf4(addresses, tile.data_ptr(), start, *tile.shape)
    else:
        tile.copy_(weight[start : start + len(tile)])
