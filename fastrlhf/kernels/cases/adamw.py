"""Cases of `adamw`."""

from __future__ import annotations

from math import inf

import torch

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """All that can be given as tensors, and as numbers; gradients and copy in bfloat16; and no parameter."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32

    def chunk(size, gradient_dtype):
        return (
            normal(size, seed=1).to(exact),
            normal(size, seed=2, scale=3.0).to(gradient_dtype),
            normal(size, seed=3, scale=0.1).to(exact),
            normal(size, seed=4, scale=0.1).square().to(exact),
        )

    gradient_dtype = exact if dtype == torch.float16 else dtype
    copy = torch.zeros(1037, dtype=torch.bfloat16)
    scalars = [torch.tensor(value, dtype=torch.float32) for value in (1e-2, 7.0, 2.0, 40.0)]
    numbers = (1e-2, 3, 2.0)
    rest = (0.9, 0.999, 1e-8, 0.1)
    return {
        "numbers": (*chunk(1037, gradient_dtype), None, None, None, None, None, *numbers, inf, *rest),
        "scalar tensors, clipped, copied": (
            *chunk(1037, gradient_dtype),
            copy,
            *scalars,
            0.0,
            1,
            1.0,
            5.0,
            *rest,
        ),
        "no parameter": (*chunk(0, gradient_dtype), copy[:0], None, None, None, None, *numbers, inf, *rest),
    }
