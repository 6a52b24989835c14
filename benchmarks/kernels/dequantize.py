"""Weights back from 8 and 4 bits: the kernels against the equations in PyTorch."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels.reference.dequantize import dequantize as plain

OPERATION = "dequantize"


@pytest.mark.parametrize("format", ["int8", "nf4"])
@pytest.mark.parametrize("shape", [(1536, 576), (49_152, 576)], ids=str)
def bench_dequantize(measure, device, shape, format):
    torch.manual_seed(0)
    weight = kernels.quantize(torch.randn(shape, device=device), format)
    measure(
        f"{list(shape)} {format}",
        lambda: kernels.dequantize(weight),
        eager=lambda: plain(*weight[:5], torch.float32),
    )
