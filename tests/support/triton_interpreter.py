"""Triton's interpreter as the kernels' tests run it: bfloat16 repaired, and every access within a tensor's bounds.

    if interpreted():
        triton_interpreter.install()

The interpreter keeps a bfloat16 number as the 16-bit integer of its bits, and hands those integers to NumPy's
arithmetic. Repaired, every operation that computes widens them to float32, where a bfloat16 number is exact, and rounds
its result to the nearest even bfloat16, as a GPU does; a reduction or scan rounds every step.
Operations that only move bits (loads, reshapes, transposes, splats) are right as they are.

Bounds: see `triton_bounds`; reductions and scans: `triton_folds`. A bfloat16 atomic is refused: no card before sm_90
has one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime.interpreter import InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

from tests.support import triton_bounds, triton_folds

# What computes. `ternary_op` also selects, for which widening changes nothing.
_ARITHMETIC = (
    "binary_op",
    "unary_op",
    "ternary_op",
    "create_fma",
    "create_dot",
    "create_erf",
    "create_rsqrt",
)
_BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor)


@functools.cache
def install() -> None:
    """Repair the interpreter of this process, once."""
    for name in _ARITHMETIC:
        setattr(InterpreterBuilder, name, _in_float32(getattr(InterpreterBuilder, name)))
    InterpreterBuilder.create_dot = _accumulating_as_wide_as_its_result(InterpreterBuilder.create_dot)
    InterpreterBuilder.cast_impl = _cast(InterpreterBuilder.cast_impl)
    InterpreterBuilder.create_fp_to_fp = _cast(InterpreterBuilder.create_fp_to_fp)
    triton_folds.install()
    ReduceOps.apply_impl = triton_folds.by_steps(ReduceOps.apply_impl, ReduceOps.generic_reduce, _is_bfloat16)
    for name in ("cumsum", "cumprod"):
        fast = getattr(ScanOps, name)
        setattr(ScanOps, name, triton_folds.by_steps(fast, ScanOps.generic_scan, _is_bfloat16))
    for name in ("create_atomic_rmw", "create_atomic_cas"):
        setattr(InterpreterBuilder, name, _refusing_bfloat16(getattr(InterpreterBuilder, name)))
    triton_bounds.install()


def to_float32(bits: np.ndarray) -> np.ndarray:
    """The numbers whose bfloat16 bits are given, uint16."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(numbers: np.ndarray) -> np.ndarray:
    """The bits, uint16, of the bfloat16 numbers nearest to float32 `numbers`; of two the even one. NaN stays NaN."""
    bits = np.ascontiguousarray(numbers, np.float32).view(np.uint32)
    odd = (bits >> 16) & 1
    rounded = ((bits + np.uint32(0x7FFF) + odd) >> 16).astype(np.uint16)
    return np.where(np.isnan(numbers), np.uint16(0x7FC0), rounded.reshape(np.shape(numbers)))


def _is_bfloat16(handle: Any) -> bool:
    return isinstance(handle, TensorHandle) and handle.dtype.scalar == tl.bfloat16


def _widen(handle: Any) -> Any:
    return TensorHandle(to_float32(handle.data), tl.float32) if _is_bfloat16(handle) else handle


def _narrow(handle: TensorHandle) -> TensorHandle:
    # a comparison gives truth values under its operands' type: they are not numbers to round
    if handle.data.dtype == np.bool_:
        return handle
    return TensorHandle(to_bfloat16(handle.data), tl.bfloat16)


def _in_float32(method: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """`method` of the builder with bfloat16 operands in float32; the result is of the type of the last operand."""

    @functools.wraps(method)
    def widened(self, *args):
        operands = [arg for arg in args if isinstance(arg, TensorHandle)]
        if not any(map(_is_bfloat16, operands)) or any(arg in _BITWISE for arg in args if callable(arg)):
            return method(self, *args)
        result = method(self, *map(_widen, args))
        return _narrow(result) if _is_bfloat16(operands[-1]) else result

    return widened


def _accumulating_as_wide_as_its_result(
    create_dot: Callable[..., TensorHandle],
) -> Callable[..., TensorHandle]:
    """A product of float16 matrices into float32: NumPy multiplies float32 matrices through BLAS, mixed ones not."""

    @functools.wraps(create_dot)
    def dot(self, a, b, d, *options):
        if d.data.dtype == np.float32 and a.data.dtype == b.data.dtype == np.float16:
            a, b = (TensorHandle(operand.data.astype(np.float32), tl.float32) for operand in (a, b))
        return create_dot(self, a, b, d, *options)

    return dot


def _cast(method: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    """Casts from and to bfloat16, through float32; those among 8-bit floats are the interpreter's own."""

    @functools.wraps(method)
    def cast(self, source, target, *rounding):
        if target.scalar == tl.bfloat16 and source.dtype.scalar.primitive_bitwidth >= 16:
            return _narrow(TensorHandle(_widen(source).data.astype(np.float32), tl.float32))
        if _is_bfloat16(source) and target.scalar.primitive_bitwidth >= 16:
            return (
                method(self, _widen(source), target, *rounding)
                if target.scalar != tl.float32
                else _widen(source)
            )
        return method(self, source, target, *rounding)

    return cast


def _refusing_bfloat16(method: Callable[..., TensorHandle]) -> Callable[..., TensorHandle]:
    @functools.wraps(method)
    def atomic(self, *args):
        if any(map(_is_bfloat16, args)):
            raise NotImplementedError("no card before sm_90 has bfloat16 atomics: accumulate in float32")
        return method(self, *args)

    return atomic
