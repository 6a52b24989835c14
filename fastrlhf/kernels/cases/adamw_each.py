"""Cases of `adamw_each`."""

from __future__ import annotations

from math import inf

import torch

from fastrlhf.kernels.cases import normal


def tensors(dtype, shapes, copied, seed=0):
    """Parameters, gradients in `dtype`, both moments, and copies, one of each for a shape."""
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    gradient_dtype = exact if dtype == torch.float16 else dtype

    def made(number, scale=1.0):
        return [normal(*shape, seed=seed + 10 * k + number, scale=scale) for k, shape in enumerate(shapes)]

    return (
        [tensor.to(exact) for tensor in made(1)],
        [tensor.to(gradient_dtype) for tensor in made(2, 3.0)],
        [tensor.to(exact) for tensor in made(3, 0.1)],
        [tensor.to(exact).square() for tensor in made(4, 0.1)],
        [torch.zeros(shape, dtype=torch.bfloat16) for shape in shapes] if copied else [],
    )


def cases(dtype):
    """Small tensors, empty ones, and one of more than a block; clipped and not, with copies and without."""
    norm = torch.tensor(40.0, dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    rest = (0.9, 0.999, 1e-8, 0.1)
    shapes = [(3,), (0,), (5, 7), (1037,), (1, 2, 2)]
    return {
        "clipped, copied": (norm, *tensors(dtype, shapes, True), 1e-2, 3, 2.0, 5.0, *rest),
        "not clipped": (norm, *tensors(dtype, shapes[:3], False), 1e-2, 7, 1.0, inf, *rest),
        "more than a launch takes": (norm, *tensors(dtype, [(2,)] * 70, False), 1e-2, 1, 1.0, 5.0, *rest),
    }
