"""Cases of `linear`."""

from __future__ import annotations

from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.quantize import quantize


def cases(dtype):
    """A few rows and more than a thin kernel takes; a float weight, with a bias or not, and quantised ones."""
    weight, bias = normal(35, 67, seed=1), normal(35, seed=2).to(dtype)
    floats = (weight.to(dtype), None, None, None)
    few, many = normal(3, 67, seed=3).to(dtype), normal(40, 67, seed=4).to(dtype)
    return {
        "few rows": (few, *floats, bias),
        "many rows": (many, *floats, None),
        "int8": (few, *quantize(weight, "int8")[:4], bias),
        "nf4": (many, *quantize(weight, "nf4")[:4], None),
        "no row": (few[:0], *floats, bias),
    }
