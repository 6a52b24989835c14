"""Gated linear units: one program a block of a row's columns."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.rows import as_rows

CONFIGS = [
    {"BLOCK": 512, "num_warps": 2},
    {"BLOCK": 1024, "num_warps": 4},
    {"BLOCK": 2048, "num_warps": 8},
]


def choose_config(columns: int) -> dict:
    """Blocks that leave few of a row's last one idle, and that many warps share."""
    return CONFIGS[0] if columns <= 512 else CONFIGS[1]


def glu(gate, up, activation):
    """See `fastrlhf.kernels.glu`."""
    gates, ups = as_rows(gate), as_rows(up)
    output = gate.new_empty(gate.shape)
    rows, columns = gates.shape
    config = choose_config(columns)
    launch_triton(
        glu_kernel,
        (rows, triton.cdiv(columns, config["BLOCK"])),
        gate.device,
        gates,
        ups,
        output,
        gates.stride(0),
        ups.stride(0),
        ACTIVATION=activation,
        COLUMNS=columns,
        **config,
    )
    return output


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)) and its derivative: 1 - value, where value is nearly one, would have no digits."""
    e = tl.exp(-tl.abs(x))
    above = 1.0 / (1.0 + e)
    return tl.where(x < 0, e * above, above), e * above * above


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """The activation of x, float32, and its derivative."""
    if ACTIVATION == "silu":
        value, slope = sigmoid(x)
        return x * value, value + x * slope
    elif ACTIVATION == "gelu":
        value = 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
        return x * value, value + x * (0.3989422804014327 * tl.exp(-0.5 * x * x))
    else:
        # (1 + tanh(u)) / 2 is the sigmoid of 2u = 2 sqrt(2 / pi) (x + 0.044715 x³)
        square = x * x
        value, slope = sigmoid(x * (1.5957691216057308 + 0.07135481627159 * square))
        # where the slope is zero its factor may have overflowed
        rest = tl.where(slope == 0, 0.0, x * slope * (1.5957691216057308 + 0.21406444881477 * square))
        return x * value, value + rest


@triton.jit
def glu_kernel(
    gate,
    up,
    output,
    gate_stride,
    up_stride,
    ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: rows, then blocks of columns. Strides are between rows; the output is contiguous."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < COLUMNS
    x = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    value, _ = activated(x, ACTIVATION)
    tl.store(output + row * COLUMNS + column, (value * scale).to(output.dtype.element_ty), mask=inside)
