"""Large results of the CPU kernels in memory that is used again for the next of their size."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch.utils.dlpack import from_dlpack

from fastrlhf.kernels import native

# PyTorch's allocator is as good for what is smaller, and faster by some microseconds.
SMALLEST = 1 << 18


def empty(shape: Sequence[int]) -> torch.Tensor:
    """As `torch.empty`, float32 on the CPU."""
    if 4 * math.prod(shape) < SMALLEST:
        return torch.empty(shape, dtype=torch.float32)
    return from_dlpack(native.module("_cpu").pool_tensor(shape))


def trim() -> None:
    """Return to the system what no tensor holds."""
    if native.missing("_cpu") is None:
        native.module("_cpu").pool_trim()


def pool_bytes() -> tuple[int, int]:
    """What tensors hold, and what waits for the next ones."""
    return native.module("_cpu").pool_bytes()
