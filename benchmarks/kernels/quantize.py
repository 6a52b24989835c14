"""Weights to 8 and 4 bits: the kernels against the equations in PyTorch."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels.reference.quantize import quantize as plain

OPERATION = "quantize"


@pytest.mark.parametrize("format", ["int8", "nf4"])
@pytest.mark.parametrize("shape", [(1536, 576), (49_152, 576)], ids=str)
def bench_quantize(measure, device, shape, format):
    torch.manual_seed(0)
    weight = torch.randn(shape, device=device)
    measure(
        f"{list(shape)} {format}",
        lambda: kernels.quantize(weight, format),
        eager=lambda: plain(weight, format),
    )
