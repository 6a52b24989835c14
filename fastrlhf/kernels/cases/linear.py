"""Cases of `linear`."""

from __future__ import annotations

from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.quantize import quantize


def bases(out, width, dtype):
    """A weight in every kind: float32, the dtype of x, int8 and NF4; each as the four parts that operations take."""
    weight = normal(out, width, seed=1, scale=width**-0.5)
    kinds = {"the dtype of x": (weight.to(dtype), None, None, None)}
    return kinds | {format: quantize(weight, format)[:4] for format in ("int8", "nf4")}


def cases(dtype):
    """A few rows, and more than the thin kernels take; sizes that no tile divides."""
    bias = normal(37, seed=2).to(dtype)
    return {
        f"{rows} rows, {kind}": (normal(rows, 70).to(dtype), *base, bias if rows == 5 else None)
        for kind, base in bases(37, 70, dtype).items()
        for rows in (5, 40)
    }
