"""RMS norm and layer norm: one program a few rows, which it holds in registers."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels import triton as backend
from fastrlhf.kernels.rows import as_rows

LONGEST_ROW = 65_536

# TILE: elements of a program's rows, one row at least.
CONFIGS = [
    {"TILE": 1024, "num_warps": 4},
    {"TILE": 4096, "num_warps": 8},
    {"TILE": 16_384, "num_warps": 16},
]


def choose_config(columns: int) -> dict:
    """The smallest tile that holds a row, or the largest: more warps where a row is longer."""
    return next((config for config in CONFIGS if config["TILE"] >= columns), CONFIGS[-1])


def serves(first: torch.Tensor, *others: torch.Tensor) -> str | None:
    """Why the kernel cannot take these tensors, or None."""
    if first.shape[-1] > LONGEST_ROW:
        return f"takes rows of at most {LONGEST_ROW} elements, not {first.shape[-1]}"
    return backend.serves(first, *others)


def tile(columns: int, config: dict) -> dict:
    """The shape of a program's rows, and its warps."""
    block = triton.next_power_of_2(columns)
    return {
        "COLUMNS": columns,
        "BLOCK": block,
        "ROWS": max(1, config["TILE"] // block),
        "num_warps": config["num_warps"],
    }


def norm(hidden_states, weight, bias, residual, eps, weight_offset, cast_before_weight):
    """See `fastrlhf.kernels.norm`."""
    shape = hidden_states.shape
    given = as_rows(hidden_states)
    added = None if residual is None else as_rows(residual)
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    normed = given.new_empty(shape)
    summed = given.new_empty((0,) if residual is None else shape)
    mean = given.new_empty((0,) if bias is None else shape[:-1], dtype=dtype)
    rstd = given.new_empty(shape[:-1], dtype=dtype)
    rows, columns = given.shape
    meta = tile(columns, choose_config(columns))
    launch_triton(
        norm_kernel,
        (triton.cdiv(rows, meta["ROWS"]),),
        given.device,
        given,
        added,
        weight.contiguous(),
        None if bias is None else bias.contiguous(),
        normed,
        summed,
        mean,
        rstd,
        rows,
        given.stride(0),
        0 if added is None else added.stride(0),
        eps,
        weight_offset,
        HAS_RESIDUAL=added is not None,
        IS_CENTRED=bias is not None,
        CAST_BEFORE_WEIGHT=cast_before_weight,
        **meta,
    )
    return normed, summed, mean, rstd


@triton.jit(do_not_specialize=["rows"])
def norm_kernel(
    hidden_states,
    residual,
    weight,
    bias,
    normed,
    summed,
    mean,
    rstd,
    rows,
    hidden_stride,
    residual_stride,
    eps,
    weight_offset,
    HAS_RESIDUAL: tl.constexpr,
    IS_CENTRED: tl.constexpr,
    CAST_BEFORE_WEIGHT: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: cdiv(rows, ROWS) programs. Strides are between rows; outputs are contiguous; mean and rstd: `[rows]`."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    here, inside_row = row < rows, column < COLUMNS
    inside = here[:, None] & inside_row[None, :]
    at = row[:, None] * COLUMNS + column[None, :]

    x = tl.load(hidden_states + row[:, None] * hidden_stride + column[None, :], mask=inside, other=0.0)
    x = x.to(tl.float32)
    if HAS_RESIDUAL:
        added = tl.load(residual + row[:, None] * residual_stride + column[None, :], mask=inside, other=0.0)
        rounded = (x + added.to(tl.float32)).to(summed.dtype.element_ty)
        tl.store(summed + at, rounded, mask=inside)
        x = rounded.to(tl.float32)
    if IS_CENTRED:
        centre = tl.sum(x, axis=1) / COLUMNS
        tl.store(mean + row, centre, mask=here)
        x = tl.where(inside, x - centre[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(x * x, axis=1) / COLUMNS + eps)
    tl.store(rstd + row, scale, mask=here)

    out = x * scale[:, None]
    if CAST_BEFORE_WEIGHT:
        out = out.to(normed.dtype.element_ty).to(tl.float32)
    out *= tl.load(weight + column, mask=inside_row, other=0.0).to(tl.float32)[None, :] + weight_offset
    if IS_CENTRED:
        out += tl.load(bias + column, mask=inside_row, other=0.0).to(tl.float32)[None, :]
    tl.store(normed + at, out.to(normed.dtype.element_ty), mask=inside)
