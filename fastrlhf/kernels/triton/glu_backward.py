"""Gradients of the gated linear units: one program a block of a row's columns."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.rows import as_rows
from fastrlhf.kernels.triton.glu import activated

CONFIGS = [
    {"BLOCK": 512, "num_warps": 2},
    {"BLOCK": 1024, "num_warps": 4},
    {"BLOCK": 2048, "num_warps": 8},
]


def choose_config(columns: int) -> dict:
    """Blocks that leave few of a row's last one idle, and that many warps share."""
    return CONFIGS[0] if columns <= 512 else CONFIGS[1]


def glu_backward(grad_output, gate, up, activation):
    """See `fastrlhf.kernels.glu`."""
    gradients, gates, ups = as_rows(grad_output), as_rows(gate), as_rows(up)
    grad_gate, grad_up = gate.new_empty(gate.shape), gate.new_empty(gate.shape)
    rows, columns = gates.shape
    config = choose_config(columns)
    launch_triton(
        glu_backward_kernel,
        (rows, triton.cdiv(columns, config["BLOCK"])),
        gate.device,
        gradients,
        gates,
        ups,
        grad_gate,
        grad_up,
        gradients.stride(0),
        gates.stride(0),
        ups.stride(0),
        ACTIVATION=activation,
        COLUMNS=columns,
        **config,
    )
    return grad_gate, grad_up


@triton.jit
def glu_backward_kernel(
    grad_output,
    gate,
    up,
    grad_gate,
    grad_up,
    grad_stride,
    gate_stride,
    up_stride,
    ACTIVATION: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: rows, then blocks of columns. Strides are between rows; the gradients are contiguous."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = column < COLUMNS
    g = tl.load(grad_output + row * grad_stride + column, mask=inside, other=0.0).to(tl.float32)
    x = tl.load(gate + row * gate_stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.load(up + row * up_stride + column, mask=inside, other=0.0).to(tl.float32)
    value, slope = activated(x, ACTIVATION)
    at = row * COLUMNS + column
    tl.store(grad_gate + at, (g * scale * slope).to(grad_gate.dtype.element_ty), mask=inside)
    tl.store(grad_up + at, (g * value).to(grad_up.dtype.element_ty), mask=inside)
