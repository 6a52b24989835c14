"""Cases of `quantize`."""

from __future__ import annotations

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """Rows that no block divides, one of them zero, in both formats."""
    weight = normal(9, 150, seed=1).to(dtype)
    weight[3] = 0
    return {format: (weight, format) for format in ("int8", "nf4")}
