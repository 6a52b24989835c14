"""Cases of `quantize`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """Rows of a block and a bit, a row of zeros, and none; a float64 weight is not quantised."""
    dtype = torch.float32 if dtype == torch.float64 else dtype
    weight = normal(5, 67, seed=1).to(dtype)
    weight[3] = 0
    return {
        f"{format}, {name}": (rows, format)
        for format in ("int8", "nf4")
        for name, rows in (("ragged", weight), ("no row", weight[:0]))
    }
