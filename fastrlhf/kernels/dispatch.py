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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Any, NamedTuple

import torch

from fastrlhf.device.observe import Cost, Kernel, observer
from fastrlhf.kernels import autocast

BACKENDS = ("reference", "cpu", "triton", "cuda")
OPERATIONS = (
    "adamw",
    "adamw_each",
    "attention",
    "attention_backward",
    "begin_step",
    "decode_attention",
    "dequantize",
    "end_step",
    "gae",
    "glu",
    "glu_backward",
    "group_advantages",
    "linear",
    "linear_backward",
    "linear_logprob",
    "linear_logprob_backward",
    "linear_ppo_loss",
    "lora_linear",
    "lora_linear_backward",
    "norm",
    "norm_backward",
    "ppo_loss",
    "quantize",
    "rope",
    "rope_cache",
    "rope_inplace",
    "sample",
)

# Preferred first. CUDA C++ before Triton is a judgement, to be replaced by a table once a GPU has measured the two.
_PREFERENCE = {"cpu": ("cpu", "reference"), "cuda": ("cuda", "triton", "reference")}

# Kernels that no machine of the project has run: each proves itself at its first use on a user's GPU.
_PROVED_AT_FIRST_USE = ("triton", "cuda")

# Of the process, not of a thread: on a GPU autograd runs the backward in a thread of its own.
_forced: list[str] = []
_costs: dict[str, Callable[..., Cost]] = {}


class Availability(NamedTuple):
    """One cell of the table that `fastrlhf doctor` prints; `written` says whether there is a kernel at all."""

    operation: str
    backend: str
    available: bool
    reason: str
    written: bool


@contextmanager
def using(backend: str) -> Iterator[None]:
    """Run every operation in the block on `backend`, where it can serve, whatever the thread.

    Raises:
        ValueError: `backend` is not one of `BACKENDS`.
    """
    _forced.append(_check_backend(backend, "using()"))
    try:
        yield
    finally:
        _forced.pop()


def call(operation: str, *args: Any) -> Any:
    """Run `operation` on the best implementation for the tensors among `args`.

    Autocast ends here: the dtypes are what the operation was given, and plain PyTorch inside it must not change them.
    """
    tensors = _tensors(args)
    if autocast.any_enabled():
        with autocast.switched_off(tensors[0]):
            return choose(operation, *tensors)(*args)
    if observer():
        return choose(operation, *tensors)(*args)
    return _choose(operation, tensors)(*args)


def costs(operation: str) -> Callable[[Callable[..., Cost]], Callable[..., Cost]]:
    """Declare what `operation` costs: decorates a function of its arguments that gives a `Cost`."""

    def declare(cost: Callable[..., Cost]) -> Callable[..., Cost]:
        _costs[operation] = cost
        return cost

    return declare


def cost(operation: str, *args: Any) -> Cost:
    """What a call of `operation` with these arguments has to read, write and compute; zeros where none is declared."""
    return _costs[operation](*args) if operation in _costs else Cost()


def has_cost(operation: str) -> bool:
    """Whether `operation` declares its cost."""
    return operation in _costs


def choose(operation: str, *tensors: torch.Tensor) -> Callable[..., Any]:
    """The implementation of `operation` that runs for `tensors`: the forced backend's if it serves, else the best.

    Where somebody observes, it is their stand-in.
    """
    if watch := observer():
        return functools.partial(_show, watch, operation)
    return _choose(operation, tensors)


def _show(watch: Callable[..., Any], operation: str, *args: Any) -> Any:
    run, declared = functools.partial(_run, operation), functools.partial(cost, operation)
    return watch(Kernel(operation, run, declared), args)


def _run(operation: str, *args: Any) -> Any:
    return _choose(operation, _tensors(args))(*args)


def _tensors(args: tuple[Any, ...]) -> list[torch.Tensor]:
    # most other arguments are None, which `isinstance` takes five times as long to refuse
    return [arg for arg in args if arg is not None and isinstance(arg, torch.Tensor)]


def _choose(operation: str, tensors: Sequence[torch.Tensor]) -> Callable[..., Any]:
    first = tensors[0]
    # `device.type` is a new string each time, and takes five times as long
    preference = _PREFERENCE.get("cpu" if first.is_cpu else first.device.type, ("reference",))
    forced = forced_backend()
    if forced is not None:
        preference = (forced, *preference)
    for backend in preference:
        reason = _declined(operation, backend, tensors)
        # who forces a kernel, such as its tests, gets it as it is
        if reason is None and backend in _PROVED_AT_FIRST_USE and backend != forced:
            reason = _unproved(operation, backend, first.device)
        if reason is None:
            return getattr(_module(operation, backend), operation)
        if backend == forced:
            _say_once(
                f"{operation}: the {backend} implementation cannot serve ({reason}); using the next one"
            )
    raise RuntimeError(f"{operation}: no implementation serves {[_describe(t) for t in tensors]}")


def forced_backend() -> str | None:
    """The backend that `using()` or FASTRLHF_BACKEND asks for, or None."""
    return _forced[-1] if _forced else _from_environment()


@functools.cache
def _from_environment() -> str | None:
    """Read once: a look into `os.environ` takes half a microsecond, as long as the rest of a choice."""
    asked = os.environ.get("FASTRLHF_BACKEND")
    return _check_backend(asked, "FASTRLHF_BACKEND") if asked else None


def table() -> list[Availability]:
    """Every operation by every backend: whether it is there, and if not, why."""
    return [_availability(operation, backend) for operation in OPERATIONS for backend in BACKENDS]


def written(operation: str, backend: str) -> bool:
    """Whether there is an implementation, able to run here or not."""
    return importlib.util.find_spec(f"fastrlhf.kernels.{backend}.{operation}") is not None


def _availability(operation: str, backend: str) -> Availability:
    reason = _missing(operation, backend)
    return Availability(operation, backend, reason is None, reason or "ready", written(operation, backend))


def backend_unavailable(backend: str) -> str | None:
    """Why no kernel of `backend` can run on this machine, or None."""
    return _unavailable(_package(backend))


def implementation(operation: str, backend: str, *args: Any) -> Callable[..., Any] | str:
    """The function of `backend` for `operation`, or why it does not take the tensors among `args`."""
    if reason := _declined(operation, backend, _tensors(args)):
        return reason
    return getattr(_module(operation, backend), operation)


def _unproved(operation: str, backend: str, device: torch.device) -> str | None:
    if device.type == "cuda":
        from fastrlhf.kernels.first_use import unproved  # which needs this module

        return unproved(operation, backend, device)
    return None


def _declined(operation: str, backend: str, tensors: Sequence[torch.Tensor]) -> str | None:
    if reason := _missing(operation, backend):
        return reason
    serves = getattr(_module(operation, backend), "serves", None) or getattr(
        _package(backend), "serves", None
    )
    return serves(*tensors) if serves else None


@functools.cache
def _missing(operation: str, backend: str) -> str | None:
    if not written(operation, backend):
        return "not written"
    # the package is asked before the module, which may import what is not there
    return backend_unavailable(backend) or _unavailable(_module(operation, backend))


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
