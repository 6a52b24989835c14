"""Reductions and scans of interpreted kernels with a function of their own, a whole block at a time.

The interpreter calls such a function once for every element, which costs a third of a millisecond each. Here it is
called on halves of the block, as a GPU does: as many times as the logarithm of its size, with the elements in order.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from triton.runtime.interpreter import ReduceOps, ScanOps


def install() -> None:
    """Fold by blocks in every kernel that this process interprets from now on."""
    ReduceOps.generic_reduce = reduce_by_halves
    ScanOps.generic_scan = scan_by_doubling


def reduce_by_halves(self: ReduceOps, values: Sequence[Any]) -> list[Any]:
    """`tl.reduce`: each element is combined with its right neighbour, until one is left."""
    axis = 0 if self.axis is None else self.axis
    arrays = [value.handle.data for value in values]
    shape = arrays[0].shape
    if self.axis is None:
        arrays = [array.reshape(-1) for array in arrays]
    while arrays[0].shape[axis] > 1:
        left = [_part(array, axis, slice(0, None, 2)) for array in arrays]
        right = [_part(array, axis, slice(1, None, 2)) for array in arrays]
        arrays = _combined(self, values, left, right)
    if self.axis is None:
        arrays = [
            array.reshape([1] * len(shape)) if self.keep_dims else array.reshape(()) for array in arrays
        ]
    elif not self.keep_dims:
        arrays = [np.squeeze(array, axis) for array in arrays]
    return _tensors(self, values, arrays)


def scan_by_doubling(self: ScanOps, values: Sequence[Any]) -> list[Any]:
    """`tl.associative_scan`: each element is combined with the one `distance` before it, for 1, 2, 4 and so on."""
    arrays = [value.handle.data for value in values]
    size, distance = arrays[0].shape[self.axis], 1
    at = np.arange(size).reshape([-1] + [1] * (arrays[0].ndim - 1 - self.axis))
    while distance < size:
        # the first ones, before which there is none, are combined with the last ones to keep the shape, and left
        before = [np.roll(array, distance, self.axis) for array in arrays]
        combined = _combined(self, values, before, arrays)
        arrays = [np.where(at < distance, *pair) for pair in zip(arrays, combined, strict=True)]
        distance *= 2
    return _tensors(self, values, arrays)


def by_steps(
    fast: Callable[..., Any], slow: Callable[..., Any], applies: Callable[[Any], bool]
) -> Callable[..., Any]:
    """A reduction or scan that takes NumPy's short cut, `fast`, unless `applies` to one of its tensors."""

    @functools.wraps(fast)
    def fold(self, values):
        tensors = values if isinstance(values, (list, tuple)) else [values]
        return (
            slow(self, tensors) if any(applies(tensor.handle) for tensor in tensors) else fast(self, values)
        )

    return fold


def _part(array: np.ndarray, axis: int, part: slice) -> np.ndarray:
    index = [slice(None)] * array.ndim
    index[axis] = part
    return array[tuple(index)]


def _combined(self, values, left, right) -> list[np.ndarray]:
    result = self.combine_fn.fn(*_tensors(self, values, left), *_tensors(self, values, right))
    return [tensor.handle.data for tensor in (result if isinstance(result, tuple) else (result,))]


def _tensors(self, values, arrays) -> list[Any]:
    return [self.to_tensor(array, value.dtype) for array, value in zip(arrays, values, strict=True)]
