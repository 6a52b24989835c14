"""Cases of `dequantize`."""

from __future__ import annotations

from fastrlhf.kernels.cases import quantize
from fastrlhf.kernels.quantize import quantize as quantized


def cases(dtype):
    """Those of `quantize`, back in `dtype`."""
    return {
        name: (*quantized(weight, format)[:5], dtype)
        for name, (weight, format) in quantize.cases(dtype).items()
    }
