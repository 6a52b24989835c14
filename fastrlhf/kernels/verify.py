"""Proves kernels on the device that they run on: tiny cases against the reference in float64.

`first_use` does it when a GPU first runs an operation, `fastrlhf doctor --verify` on demand, for every operation and
backend.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.utils._pytree import tree_leaves, tree_map

from fastrlhf.kernels import dispatch, triton
from fastrlhf.kernels.cases import cases

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ULPS = 4


class Verdict(NamedTuple):
    """What a kernel's cases showed.

    Attributes:
        worst: the largest error, as a share of what is allowed: twice the error of plain PyTorch at the same precision,
            plus a few units in the last place. More than one is wrong; None if the backend took none of the cases.
        where: the dtype and the case that it was in, or what else went wrong.
    """

    operation: str
    backend: str
    worst: float | None
    where: str

    @property
    def wrong(self) -> bool:
        return self.worst is not None and self.worst > 1

    def __str__(self) -> str:
        return f"{self.worst:.3g} times the error allowed in {self.where}"


@torch.no_grad()
def verify(operation: str, backend: str, device: torch.device) -> Verdict:
    """Run every case of `operation` on `device` in every dtype that `backend` takes there."""
    worst, where = None, "takes none of the cases"
    for dtype in _dtypes(backend):
        for name, args in cases(operation, dtype).items():
            there = tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, args)
            kernel = dispatch.implementation(operation, backend, *there)
            if isinstance(kernel, str):
                continue
            place = f"{str(dtype).removeprefix('torch.')}, {name}"
            try:
                ratio = error_ratio(kernel, operation, args, there)
            except Exception as error:  # whatever a compiler or a driver of the user's machine may raise
                return Verdict(operation, backend, torch.inf, f"{place}: {type(error).__name__}: {error}")
            if worst is None or ratio > worst:
                worst, where = ratio, place
    return Verdict(operation, backend, worst, where)


def error_ratio(kernel: Callable[..., Any], operation: str, args: tuple, there: tuple) -> float:
    """The largest error of any output of `kernel(*there)`, as a share of what is allowed.

    `args` are `there` on the CPU. What an operation changes in place counts as output.
    """
    reference = dispatch.implementation(operation, "reference", *args)
    results = []
    for function, given in ((kernel, there), (reference, args), (reference, tree_map(_exact, args))):
        given = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, given)
        out = function(*given)
        results.append([leaf for leaf in tree_leaves((out, given)) if isinstance(leaf, torch.Tensor)])
    worst = 0.0
    for actual, plain, exact in zip(*results, strict=True):
        ratio = _ratio(actual.cpu(), plain, exact, lowest=args[0].dtype)
        worst = max(worst, ratio)
    return worst


def _exact(leaf: Any) -> Any:
    if isinstance(leaf, torch.dtype):
        return torch.float64 if leaf.is_floating_point else leaf
    return leaf.double() if isinstance(leaf, torch.Tensor) and leaf.is_floating_point() else leaf


def _ratio(actual: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor, lowest: torch.dtype) -> float:
    if (actual.shape, actual.dtype) != (plain.shape, plain.dtype):
        return torch.inf
    if actual.numel() == 0:
        return 0.0
    if not actual.is_floating_point():
        return 0.0 if torch.equal(actual, plain) else torch.inf
    dtype = actual.dtype
    if dtype == torch.float64 and lowest != torch.float64:
        dtype = torch.float32  # sums in float64 of terms in float32
    exact = exact.double()
    rounded = exact.to(dtype).double()
    actual, plain = actual.to(dtype).double(), plain.to(dtype).double()
    special = ~rounded.isfinite()
    if not torch.equal(actual[special].nan_to_num(nan=7.0), rounded[special].nan_to_num(nan=7.0)):
        return torch.inf
    if not actual[~special].isfinite().all():
        return torch.inf
    kept, finite_plain = ~special, ~special & plain.isfinite()
    largest = max(float(rounded[kept].abs().max()) if kept.any() else 0.0, torch.finfo(dtype).tiny)
    unit = torch.finfo(dtype).eps * 2.0 ** (math.frexp(largest)[1] - 1)
    plain_error = float((plain - exact)[finite_plain].abs().max()) if finite_plain.any() else 0.0
    error = float((actual - exact)[kept].abs().max()) if kept.any() else 0.0
    return error / (2 * plain_error + ULPS * unit)


def _dtypes(backend: str) -> tuple[torch.dtype, ...]:
    if backend == "triton" and triton.interpreted():
        # bfloat16 is wrong in Triton's own interpreter
        return tuple(dtype for dtype in DTYPES if dtype != torch.bfloat16)
    return DTYPES
