"""Tiny inputs of every operation, on which a kernel proves itself on the user's own device (see `verify`).

`fastrlhf/kernels/cases/<operation>.py` has `cases(dtype) -> dict[str, tuple]`: named arguments of the registered
operation, on the CPU, the floats of them in `dtype` where the operation does not say otherwise.
"""

from __future__ import annotations

import importlib
from typing import Any

import torch


def cases(operation: str, dtype: torch.dtype) -> dict[str, tuple[Any, ...]]:
    """The arguments of each case of `operation`, by the case's name."""
    return importlib.import_module(f"fastrlhf.kernels.cases.{operation}").cases(dtype)


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    """Normally distributed numbers, float32, the same for every run."""
    return scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ragged(*shape: int, seed: int = 0) -> torch.Tensor:
    """A mask of rows of different lengths, with a gap in the first; `[B, T]`."""
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(shape[1]) < lengths
    mask[0] = True
    mask[0, shape[1] // 2] = False
    return mask
