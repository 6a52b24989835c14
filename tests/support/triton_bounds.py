"""Bounds of interpreted kernels: a lane that is not masked must touch an element of the tensor its pointer came from.

The interpreter reads and writes wherever a pointer points. Here every pointer remembers the tensor that it was passed
as, and each lane of a load, store or atomic must lie on one of that tensor's own elements: a view's neighbours in the
same storage are out of bounds too. A pointer made some other way (from an integer, from a tensor descriptor) may
touch any of the tensors passed to the kernel.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from triton.runtime import interpreter
from triton.runtime.errors import InterpreterError
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, TensorHandle

# Operations of the builder that make a pointer of a pointer, always their first operand.
_POINTER_TO_POINTER = (
    "create_addptr",
    "create_splat",
    "create_broadcast",
    "create_expand_dims",
    "create_reshape",
    "create_trans",
    "create_bitcast",
)
# Operations that touch memory: what a message calls them, and the positions of their pointer and mask.
_ACCESSES = {
    "create_masked_load": ("load", 0, 1),
    "create_masked_store": ("store", 0, 2),
    "create_atomic_rmw": ("atomic", 1, 3),
    "create_atomic_cas": ("atomic", 0, None),
}
_LANES_NAMED = 6


class OutOfBounds(IndexError):
    """A kernel touched memory that is not an element of the tensor passed to it."""


class Extent:
    """The elements of one tensor, as addresses."""

    def __init__(self, tensor: torch.Tensor) -> None:
        axes = sorted(zip(tensor.stride(), tensor.shape, strict=True), reverse=True)
        self.axes = [(stride, size) for stride, size in axes if stride and size > 1]
        self.start, self.item_size, self.empty = tensor.data_ptr(), tensor.element_size(), not tensor.numel()
        self.span = 1 + sum(stride * (size - 1) for stride, size in self.axes)
        self.text = f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"

    def holds(self, addresses: np.ndarray, size: int) -> np.ndarray:
        """Which of `addresses` have `size` bytes of elements after them, aligned if they are one element's."""
        offset = addresses.astype(np.int64) - self.start
        inside = self._are_elements(offset // self.item_size)
        if size == self.item_size:
            return inside & (offset % size == 0)
        return inside & self._are_elements((offset + size - 1) // self.item_size)

    def _are_elements(self, element: np.ndarray) -> np.ndarray:
        inside = (element >= 0) & (element < self.span) & (not self.empty)
        if not self._nested:
            return inside
        rest = element
        for stride, size in self.axes:
            inside &= rest // stride < size
            rest = rest % stride
        return inside & (rest == 0)

    @functools.cached_property
    def _nested(self) -> bool:
        """Whether each axis steps over all that the axes of smaller stride span, so that dividing finds the index."""
        span = 1
        for stride, size in reversed(self.axes):
            if stride < span:
                return False
            span += stride * (size - 1)
        return True


class _Launch:
    """The kernel that runs now, and the tensors passed to it."""

    kernel: str
    extents: list[Extent]


def install() -> None:
    """Check the bounds of every kernel that this process interprets from now on. Not twice."""
    interpreter._implicit_cvt = _remembering(interpreter._implicit_cvt)
    # Tensors are on the CPU as it is. The copies go through closures that refer to themselves, and so keep a launcher's
    # scratch alive until the next garbage collection, where a test that counts memory finds it.
    GridExecutor._init_args_hst = lambda self, args, kwargs: (list(args), kwargs)
    GridExecutor._restore_args_dev = lambda self, *args: None
    GridExecutor.__call__ = _naming_the_kernel(GridExecutor.__call__)
    for name in _POINTER_TO_POINTER:
        setattr(InterpreterBuilder, name, _keeping_extent(getattr(InterpreterBuilder, name)))
    for name, access in _ACCESSES.items():
        setattr(InterpreterBuilder, name, _checked(getattr(InterpreterBuilder, name), *access))


def _remembering(convert: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The conversion of a launch's arguments, whose pointers get their tensor's extent."""

    @functools.wraps(convert)
    def converted(argument):
        result = convert(argument)
        if hasattr(argument, "data_ptr"):
            extent = Extent(getattr(argument, "base", argument))
            result.handle.set_attr("extent", extent)
            _Launch.extents.append(extent)
        return result

    return converted


def _naming_the_kernel(run: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(run)
    def named(self, *args, **kwargs):
        _Launch.kernel, _Launch.extents = self.fn.__name__, []
        try:
            with np.errstate(all="ignore"):  # a card does not warn of an overflow either
                run(self, *args, **kwargs)
        except InterpreterError as error:
            cause: BaseException | None = error
            while isinstance(cause, InterpreterError):
                cause = cause.__cause__
            if isinstance(cause, OutOfBounds):
                raise cause from None
            raise

    return named


def _keeping_extent(method: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    @functools.wraps(method)
    def kept(self, *args):
        result = method(self, *args)
        pointer = args[0] if isinstance(args[0], TensorHandle) else args[1]  # a splat's type comes first
        if "extent" in pointer.attr:
            result.set_attr("extent", pointer.attr["extent"])
        return result

    return kept


def _checked(method: Callable[..., Any], what: str, pointer: int, mask: int | None) -> Callable[..., Any]:
    @functools.wraps(method)
    def checked(self, *args, **kwargs):
        _check(what, args[pointer], None if mask is None else args[mask], self.grid_idx)
        return method(self, *args, **kwargs)

    return checked


def _check(what: str, pointer: TensorHandle, mask: TensorHandle | None, program: tuple[int, ...]) -> None:
    addresses = np.asarray(pointer.data)
    touched = np.ones(addresses.shape, bool)
    if mask is not None:
        touched &= np.broadcast_to(mask.data.astype(bool), addresses.shape)
    size = max(1, pointer.get_element_ty().primitive_bitwidth // 8)
    extents = [pointer.attr["extent"]] if "extent" in pointer.attr else _Launch.extents
    held = np.zeros(addresses.shape, bool)
    for extent in extents:
        held |= extent.holds(addresses, size)
    outside = np.argwhere(touched & ~held)
    if len(outside):
        lanes = ", ".join(str(tuple(lane.tolist())) for lane in outside[:_LANES_NAMED])
        more = f" and {len(outside) - _LANES_NAMED} more" if len(outside) > _LANES_NAMED else ""
        raise OutOfBounds(
            f"{_Launch.kernel}: {what} outside of {' and '.join(extent.text for extent in extents)} "
            f"in program {tuple(program)}, lanes {lanes}{more}"
        )
