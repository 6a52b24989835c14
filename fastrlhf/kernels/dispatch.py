"""Which implementation of an operation runs, and why.

An implementation is a function named after its operation in `fastrlhf/kernels/<backend>/<operation>.py`. The backend's
package says `unavailable() -> str | None` (why nothing of it can run on this machine) and `serves(*tensors) -> str |
None` (why it cannot take these tensors), None when it can; the operation's module may define either of its own.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import Any, NamedTuple

import torch

BACKENDS = ("reference", "cpu", "triton", "cuda")
OPERATIONS = (
    "dequantize",
    "gae",
    "linear",
    "linear_backward",
    "linear_logprob",
    "linear_logprob_backward",
    "ppo_loss",
    "quantize",
    "sample",
)

# Preferred first. CUDA C++ before Triton is a judgement, to be replaced by a table once a GPU has measured the two.
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

_forced: ContextVar[str | None] = ContextVar("fastrlhf_backend", default=None)


class Availability(NamedTuple):
    """One cell of the table that `fastrlhf doctor` prints."""

    operation: str
    backend: str
    available: bool
    reason: str


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Run every operation in the block on `backend`, where it can serve.

    Raises:
        ValueError: `backend` is not one of `BACKENDS`.
    """
    token = _forced.set(_check_backend(backend, "using()"))
    try:
        yield
    finally:
        _forced.reset(token)


def call(operation: str, *args: Any) -> Any:
    """Run `operation` on the best implementation for the tensors among `args`."""
    tensors = [arg for arg in args if isinstance(arg, torch.Tensor)]
    return choose(operation, *tensors)(*args)


def choose(operation: str, *tensors: torch.Tensor) -> Callable[..., Any]:
    """The implementation of `operation` that runs for `tensors`: the forced backend's if it serves, else the best."""
    preference = _PREFERENCE.get(tensors[0].device.type, ("reference",))
    forced = forced_backend()
    if forced is not None:
        preference = (forced, *preference)
    for backend in preference:
        reason = _refusal(operation, backend, tensors)
        if reason is None:
            return getattr(_module(operation, backend), operation)
        if backend == forced:
            _say_once(
                f"{operation}: the {backend} implementation cannot serve ({reason}); using the next one"
            )
    raise RuntimeError(f"{operation}: no implementation serves {[_describe(t) for t in tensors]}")


def forced_backend() -> str | None:
    """The backend that `using()` or FASTRLHF_BACKEND asks for, or None."""
    asked = _forced.get()
    if asked is None and (environment := os.environ.get("FASTRLHF_BACKEND")):
        asked = _check_backend(environment, "FASTRLHF_BACKEND")
    return asked


def table() -> list[Availability]:
    """Every operation by every backend: whether it is there, and if not, why."""
    return [_availability(operation, backend) for operation in OPERATIONS for backend in BACKENDS]


def _availability(operation: str, backend: str) -> Availability:
    reason = _missing(operation, backend)
    return Availability(operation, backend, reason is None, reason or "ready")


def _refusal(operation: str, backend: str, tensors: tuple[torch.Tensor, ...]) -> str | None:
    if reason := _missing(operation, backend):
        return reason
    serves = getattr(_module(operation, backend), "serves", None) or getattr(
        _package(backend), "serves", None
    )
    return serves(*tensors) if serves else None


@functools.cache
def _missing(operation: str, backend: str) -> str | None:
    # the package is asked first: its modules may import what is not there
    if reason := _unavailable(_package(backend)):
        return reason
    if importlib.util.find_spec(f"fastrlhf.kernels.{backend}.{operation}") is None:
        return "not written yet"
    return _unavailable(_module(operation, backend))


def _unavailable(module: ModuleType) -> str | None:
    says = getattr(module, "unavailable", None)
    return says() if says else None


@functools.cache
def _package(backend: str) -> ModuleType:
    return importlib.import_module(f"fastrlhf.kernels.{backend}")


@functools.cache
def _module(operation: str, backend: str) -> ModuleType:
    return importlib.import_module(f"fastrlhf.kernels.{backend}.{operation}")


def _check_backend(backend: str, source: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(f"{source}: backend {backend!r} is not one of {', '.join(BACKENDS)}")
    return backend


def _describe(tensor: torch.Tensor) -> str:
    return f"{tensor.dtype}{list(tensor.shape)} on {tensor.device}"


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, RuntimeWarning, stacklevel=4)
