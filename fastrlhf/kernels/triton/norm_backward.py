"""Gradients of the norms. Each of at most PROGRAMS programs adds up the weight's gradient over its rows, and a second
kernel adds up theirs: no atomics, so the same input gives the same bits, whatever the card."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.rows import as_rows
from fastrlhf.kernels.triton.norm import serves, tile

__all__ = ["CONFIGS", "choose_config", "norm_backward", "serves"]

PROGRAMS = 256

# TILE: elements of the rows that a program works on at once, one row at least.
CONFIGS = [
    {"TILE": 1024, "num_warps": 4},
    {"TILE": 2048, "num_warps": 8},
    {"TILE": 8192, "num_warps": 16},
]


def choose_config(columns: int) -> dict:
    """The smallest tile that holds a row, or the largest: more warps where a row is longer."""
    return next((config for config in CONFIGS if config["TILE"] >= columns), CONFIGS[-1])


def norm_backward(grad_normed, grad_summed, summed, weight, mean, rstd, weight_offset, needs_weight):
    """See `fastrlhf.kernels.norm`."""
    given, gradient = as_rows(summed), as_rows(grad_normed)
    from_sum = None if grad_summed is None else as_rows(grad_summed)
    rows, columns = given.shape
    meta = tile(columns, choose_config(columns))
    tiles = triton.cdiv(rows, meta["ROWS"])
    programs = min(tiles, PROGRAMS) if needs_weight else tiles
    grad = summed.new_empty(summed.shape)
    parts = rstd.new_empty((2 if mean is not None else 1, programs, columns) if needs_weight else 0)
    launch_triton(
        norm_backward_kernel,
        (programs,),
        grad.device,
        gradient,
        from_sum,
        given,
        weight.contiguous(),
        None if mean is None else mean.contiguous(),
        rstd.contiguous(),
        grad,
        parts,
        rows,
        programs,
        gradient.stride(0),
        0 if from_sum is None else from_sum.stride(0),
        given.stride(0),
        weight_offset,
        HAS_SUM=from_sum is not None,
        IS_CENTRED=mean is not None,
        NEEDS_WEIGHT=needs_weight,
        **meta,
    )
    if not needs_weight:
        return grad, weight.new_empty(0), weight.new_empty(0)
    sums = [weight.new_empty(columns) for _ in parts]
    for of_programs, total in zip(parts, sums, strict=True):
        launch_triton(
            add_parts_kernel,
            (triton.cdiv(columns, 64),),
            grad.device,
            of_programs,
            total,
            programs,
            COLUMNS=columns,
            BLOCK=64,
            PARTS=32,
            num_warps=4,
        )
    return grad, sums[0], sums[1] if mean is not None else weight.new_empty(0)


@triton.jit(do_not_specialize=["rows", "programs"])
def norm_backward_kernel(
    grad_normed,
    grad_summed,
    summed,
    weight,
    mean,
    rstd,
    grad,
    parts,
    rows,
    programs,
    normed_stride,
    sum_stride,
    stride,
    weight_offset,
    HAS_SUM: tl.constexpr,
    IS_CENTRED: tl.constexpr,
    NEEDS_WEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: `programs` programs, each of which takes every `programs`-th tile of ROWS rows. Strides are between rows.

    parts: float32 `[1 or 2, programs, COLUMNS]`, the sums for the weight and, in a layer norm, the bias.
    """
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside_row = column < COLUMNS
    scale = tl.load(weight + column, mask=inside_row, other=0.0).to(tl.float32)[None, :] + weight_offset
    of_weight = tl.zeros((ROWS, BLOCK), tl.float32)
    of_bias = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(program * ROWS, rows, programs * ROWS):
        row = (first + tl.arange(0, ROWS)).to(tl.int64)
        here = row < rows
        inside = here[:, None] & inside_row[None, :]
        g = tl.load(grad_normed + row[:, None] * normed_stride + column[None, :], mask=inside, other=0.0)
        x = tl.load(summed + row[:, None] * stride + column[None, :], mask=inside, other=0.0)
        root = tl.load(rstd + row, mask=here, other=0.0)[:, None]
        g, n = g.to(tl.float32), x.to(tl.float32)
        if IS_CENTRED:
            n = tl.where(inside, n - tl.load(mean + row, mask=here, other=0.0)[:, None], 0.0)
        n *= root
        h = g * scale
        out = h - n * (tl.sum(h * n, axis=1) / COLUMNS)[:, None]
        if IS_CENTRED:
            out -= (tl.sum(h, axis=1) / COLUMNS)[:, None]
        out *= root
        if HAS_SUM:
            passed = tl.load(
                grad_summed + row[:, None] * sum_stride + column[None, :], mask=inside, other=0.0
            )
            out += passed.to(tl.float32)
        tl.store(grad + row[:, None] * COLUMNS + column[None, :], out.to(grad.dtype.element_ty), mask=inside)
        if NEEDS_WEIGHT:
            of_weight += g * n
            if IS_CENTRED:
                of_bias += g
    if NEEDS_WEIGHT:
        part = parts + program * COLUMNS + column
        tl.store(part, tl.sum(of_weight, axis=0), mask=inside_row)
        if IS_CENTRED:
            tl.store(part + programs * COLUMNS, tl.sum(of_bias, axis=0), mask=inside_row)


@triton.jit(do_not_specialize=["programs"])
def add_parts_kernel(parts, total, programs, COLUMNS: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """Grid: blocks of columns. parts: float32 `[programs, COLUMNS]`; total: `[COLUMNS]`."""
    column = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside_row = column < COLUMNS
    sums = tl.zeros((PARTS, BLOCK), tl.float32)
    for first in range(0, programs, PARTS):
        part = first + tl.arange(0, PARTS)
        inside = (part < programs)[:, None] & inside_row[None, :]
        sums += tl.load(parts + part[:, None] * COLUMNS + column[None, :], mask=inside, other=0.0)
    tl.store(total + column, tl.sum(sums, axis=0).to(total.dtype.element_ty), mask=inside_row)
