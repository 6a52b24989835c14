"""Who watches what runs on a device: told of each operation, and of each place where the host is meant to wait.

Neither the operations nor the trainers know the watcher (the simulated accelerator is one). State is of the process,
not of a thread: the backward of what a GPU computed runs in a thread of autograd's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch


class Cost(NamedTuple):
    """What one call of an operation has to do at least: each input read once and each output written once, in bytes,
    and the arithmetic, in floating-point operations (a multiplication and an addition are two, an exponential one)."""

    read: int = 0
    written: int = 0
    flops: int = 0


class Kernel(NamedTuple):
    """An operation as an observer gets it.

    Attributes:
        operation: its name.
        run: runs it on the best implementation for the tensors that it is given.
        cost: its `Cost` for its arguments.
    """

    operation: str
    run: Callable[..., Any]
    cost: Callable[..., Cost]


# Called in place of each operation with (kernel, arguments); what it returns is the operation's result.
Observer = Callable[[Kernel, tuple[Any, ...]], Any]

_observers: list[Observer] = []
_reasons: list[str] = []
_changes = 0


def observer() -> Observer | None:
    """Who watches now: the innermost, or None."""
    return _observers[-1] if _observers else None


@contextmanager
def observing(watch: Observer) -> Iterator[None]:
    """In the block `watch` gets every call of every operation, and runs it itself."""
    global _changes
    _observers.append(watch)
    _changes += 1
    try:
        yield
    finally:
        _observers.remove(watch)
        _changes += 1


def changes() -> int:
    """How often who watches has changed: a part of the key of tensors that are kept for a device, since a simulated
    one's are gone with it."""
    return _changes


@contextmanager
def host_waits(reason: str) -> Iterator[None]:
    """A block in which the host may wait for the device, because `reason`; elsewhere in a step it must not."""
    _reasons.append(reason)
    try:
        yield
    finally:
        _reasons.pop()


def reason_to_wait() -> str | None:
    """Why the host may wait now, or None where it must not."""
    return _reasons[-1] if _reasons else None


def nbytes(*tensors: torch.Tensor | None) -> int:
    """Bytes of the tensors that are given."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if tensor is not None)
