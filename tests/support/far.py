"""Tensors whose elements lie more than 2^31 elements apart, at the price of the pages that are touched.

An offset that a kernel computes in 32 bits is right for every tensor of a test's size, and wraps on a card that holds a
real batch. Under the interpreter's bounds check it then points outside of the tensor.
"""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import torch

FAR = 2**31


def far_memory(count: int, dtype: torch.dtype) -> torch.Tensor:
    """`count` elements of zeros, `[count]`, of which the system commits a page when it is first written."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
    return torch.frombuffer(mmap.mmap(-1, count * dtype.itemsize, flags=flags), dtype=dtype, count=count)


def far_rows(tensor: torch.Tensor) -> torch.Tensor:
    """The same values with a stride along the first axis that puts the last of its rows, at least two, past `FAR`."""
    row = math.prod(tensor.shape[1:])
    stride = (
        -(-max(row, FAR // (tensor.shape[0] - 1) + 1) // 16) * 16
    )  # aligned as a launch of real rows would be
    memory = far_memory(stride * (tensor.shape[0] - 1) + row, tensor.dtype)
    far = memory.as_strided(tensor.shape, (stride, *torch.empty(tensor.shape[1:], device="meta").stride()))
    return far.copy_(tensor)


@contextmanager
def programs_from(first: int, axis: int = 0) -> Iterator[None]:
    """In the block the interpreter's programs along an axis count from `first`: the last ones of a launch too large to
    run. For kernels of contiguous tensors, whose stride is their size."""
    counted = axis
    from triton import language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    def program_id(self, axis):
        number = self.grid_idx[axis] + (first if axis == counted else 0)
        return TensorHandle(np.array([number], dtype=np.int32), tl.int32)

    with patch.object(InterpreterBuilder, "create_get_program_id", program_id):
        yield
