"""What attention's kernels share: scores of a tile, which of them count, and sequences."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.kernels import triton as backend

MAX_WIDTH = 256


def serves(first: torch.Tensor, *others: torch.Tensor) -> str | None:
    """Why attention's kernels cannot take tensors like `first`, or None."""
    if first.shape[-1] > MAX_WIDTH:
        return f"takes head dimensions up to {MAX_WIDTH}, not {first.shape[-1]}"
    return backend.serves(first, *others)


def score_factors(scale: float, softcap: float | None) -> tuple[float, float]:
    """What `tile_scores` multiplies dot products with, and what it bounds the scores with."""
    return (scale, 0.0) if softcap is None else (scale / softcap, softcap)


def padded_width(width: int) -> int:
    """The columns of a tile: a power of two, and 16 at least, the least that a matrix product takes."""
    return max(16, triton.next_power_of_2(width))


def size_class(width: int, dtype: torch.dtype) -> int:
    """Which row of a table of configurations: head dimensions to 64, 128 and 256 in half precision, then in float32."""
    columns = padded_width(width)
    return 3 * (dtype == torch.float32) + (columns > 64) + (columns > 128)


@triton.jit
def tanh(x):
    """Within 2 units in the last place. Source: Moshier, Cephes, tanhf.c: a polynomial where 1 - e^-2x would cancel."""
    size = tl.abs(x)
    e = tl.exp(-2.0 * size)
    large = (1.0 - e) / (1.0 + e)
    z = x * x
    polynomial = -5.70498872745e-3 * z + 2.06390887954e-2
    polynomial = polynomial * z - 5.37397155531e-2
    polynomial = polynomial * z + 1.33314422036e-1
    polynomial = polynomial * z - 3.33332819422e-1
    small = x + x * z * polynomial
    return tl.where(size < 0.625, small, tl.where(x < 0, -large, large))


@triton.jit
def tile_scores(left, right, factor, bound, HAS_SOFTCAP: tl.constexpr):
    """The scores of `left @ right`, and their slope: the derivative by the score before the soft-cap."""
    products = tl.dot(left, right, input_precision="ieee") * factor
    slope = tl.full(products.shape, 1.0, tl.float32)
    if HAS_SOFTCAP:
        capped = tanh(products)
        slope = 1.0 - capped * capped
        products = bound * capped
    return products, slope


@triton.jit
def is_seen(rows, keys, length, window, HAS_WINDOW: tl.constexpr):
    """Which keys a row sees; none are past the sequence's end."""
    seen = (keys <= rows) & (keys < length)
    if HAS_WINDOW:
        seen = seen & (rows - keys < window)
    return seen


@triton.jit
def sequence_bounds(cu_seqlens, skip, sequence, tokens, HAS_SKIP: tl.constexpr):
    """The token at which the positions of a sequence that count begin, int64, and how many there are."""
    start = tl.load(cu_seqlens + sequence).to(tl.int64)
    end = tl.load(cu_seqlens + sequence + 1).to(tl.int64)
    # bounds that are wrong must not be read at
    start = tl.minimum(tl.maximum(start, 0), tokens)
    end = tl.minimum(tl.maximum(end, 0), tokens)
    if HAS_SKIP:
        start += tl.maximum(tl.load(skip + sequence), 0).to(tl.int64)
    return start, tl.maximum(end - start, 0).to(tl.int32)
