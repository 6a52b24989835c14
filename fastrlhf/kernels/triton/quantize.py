"""Launcher of the Triton kernels that quantise."""

from __future__ import annotations

from fastrlhf.kernels.triton.quantize_int8 import quantize_int8
from fastrlhf.kernels.triton.quantize_nf4 import quantize_nf4


def quantize(weight, format):
    """See `fastrlhf.kernels.quantize`. The same codes as the reference's, bit for bit."""
    return (quantize_int8 if format == "int8" else quantize_nf4)(weight.contiguous())
