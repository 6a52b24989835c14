"""Cases of `dequantize`."""

from __future__ import annotations

from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.quantize import FORMATS, quantize


def cases(dtype):
    """A weight whose rows no block divides, in both formats."""
    weight = normal(9, 150, seed=1)
    return {format: (*quantize(weight, format)[:5], dtype) for format in FORMATS}
