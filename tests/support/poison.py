"""Unwritten memory that shows: what `torch.empty` and its kin return is full of NaN instead of whatever lay there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

import torch

_ALLOCATE = (
    (torch, "empty"),
    (torch, "empty_like"),
    (torch, "empty_strided"),
    (torch.Tensor, "new_empty"),
)


@contextmanager
def poisoned_memory() -> Iterator[None]:
    """In the block new memory that nobody has written holds NaN (floats), True (bools) or a large number (integers).

    A kernel that leaves a part of its output or its scratch unwritten then gives results that no test takes for right,
    where the zeros of a fresh page would pass.
    """
    with ExitStack() as stack:
        for owner, name in _ALLOCATE:
            stack.enter_context(patch.object(owner, name, _poisoning(getattr(owner, name))))
        yield


def _poisoning(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(allocate)
    def allocated(*args, **kwargs):
        tensor = allocate(*args, **kwargs)
        with torch.no_grad():
            return tensor.fill_(poison(tensor.dtype))

    return allocated


def poison(dtype: torch.dtype) -> float | int | bool:
    """What unwritten memory of `dtype` is filled with."""
    if dtype == torch.bool:
        return True
    if dtype.is_floating_point or dtype.is_complex:
        return float("nan")
    return torch.iinfo(dtype).max // 3
