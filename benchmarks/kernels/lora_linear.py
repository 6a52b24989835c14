"""A layer with adapters, forward and backward: one operation against the products that libraries write out."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import beside
from fastrlhf import kernels

OPERATION = "lora_linear"


def plain(x, weight, lora_A, lora_B, offsets, scaling):
    """Group by group; a quantised base is dequantised whole, as without a kernel it has to be."""
    weight = kernels.dequantize(weight, x.dtype) if isinstance(weight, kernels.QuantizedWeight) else weight
    y = torch.nn.functional.linear(x, weight)
    parts = []
    for g in range(len(offsets) - 1):
        rows = slice(offsets[g], offsets[g + 1])
        parts.append(y[rows] + (x[rows] @ lora_A[g].T) * scaling[g] @ lora_B[g].T)
    return torch.cat(parts)


@beside(reference=False)
@pytest.mark.parametrize("rows", [16, 1024])
@pytest.mark.parametrize("base", ["float32", "int8", "nf4"])
@pytest.mark.parametrize("shape", [(1536, 576), (576, 1536), (192, 576)], ids=str)
@pytest.mark.parametrize("way", ["forward", "forward and backward"])
def bench_lora_linear(measure, device, way, shape, base, rows):
    torch.manual_seed(0)
    (out, width), rank, training = shape, 16, way != "forward"
    x = torch.randn(rows, width, device=device, requires_grad=training)
    weight = torch.randn(out, width, device=device) / width**0.5
    weight = weight if base == "float32" else kernels.quantize(weight, base)
    lora_A = torch.randn(2, rank, width, device=device, requires_grad=training)
    lora_B = torch.randn(2, out, rank, device=device, requires_grad=training)
    bounds = [0, rows // 2, rows]
    offsets = torch.tensor(bounds, dtype=torch.int32, device=device)
    scaling = torch.full((2,), 2.0, device=device)
    grad = torch.randn(rows, out, device=device)

    def run(function, offsets):
        y = function(x, weight, lora_A, lora_B, offsets, scaling)
        if training:
            torch.autograd.grad(y, [x, lora_A, lora_B], grad)

    run(kernels.lora_linear, offsets)  # measures the providers
    case = f"[{rows}, {width}] x [{out}, {width}] {base}, {way}"
    measure(case, lambda: run(kernels.lora_linear, offsets), eager=lambda: run(plain, bounds))
