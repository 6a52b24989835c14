"""The only place that takes a stream, guards a device or turns a launch error into an exception."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from types import ModuleType
from typing import Any

import torch

# Called instead of a Triton launch with (kernel, grid, arguments, meta-parameters).
TritonObserver = Callable[[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]], None]

_observer: ContextVar[TritonObserver | None] = ContextVar("fastrlhf_triton_observer", default=None)


class LaunchError(RuntimeError):
    """A CUDA kernel could not be launched."""


def launch(module: ModuleType, kernel: str, device: torch.device, *args: object) -> None:
    """Launch `module.kernel(*args, stream)` on the current stream of `device`. The host does not wait for it.

    Args:
        module: a compiled module whose kernels return a cudaError_t, with `set_device`, `error_name`, `error_text`.
        kernel: the kernel's name in it.
        device: a CUDA device, the one that the addresses among `args` are of.

    Raises:
        LaunchError: the launch was refused; names the kernel, the error and what it means. An error inside a running
            kernel shows later, at the next operation that waits, as PyTorch's own exception.
    """
    with torch.cuda.device(device):
        # The module's own copy of the CUDA runtime does not see which device PyTorch has made current.
        check(module, kernel, module.set_device(torch.cuda.current_device()))
        launcher: Callable[..., int] = getattr(module, kernel)
        check(module, kernel, launcher(*args, torch.cuda.current_stream().cuda_stream))


def check(module: ModuleType, kernel: str, error: int) -> None:
    """Raise LaunchError unless `error`, a cudaError_t, is zero."""
    if error:
        raise LaunchError(f"{kernel}: {module.error_name(error)}: {module.error_text(error)}")


def launch_triton(kernel: Any, grid: tuple[int, ...], device: torch.device, *args: Any, **meta: Any) -> None:
    """Launch a Triton kernel on the current stream of `device`. The host does not wait for it.

    Args:
        kernel: a function made by `triton.jit`.
        grid: the number of programs along each axis; nothing is launched if one is zero.
        args: the kernel's arguments; meta: its constexpr parameters, `num_warps` and `num_stages`. A product and a sum
            become one instruction unless it says `enable_fp_fusion=False` (Triton's own default is about to change).
    """
    if 0 in grid:
        return
    meta = {"enable_fp_fusion": True, **meta}
    if observer := _observer.get():
        observer(kernel, grid, args, meta)
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        kernel[grid](*args, **meta)


@contextmanager
def observing_triton(observer: TritonObserver) -> Iterator[None]:
    """In the block `observer` gets every Triton launch, and nothing runs: so a launcher tells what it would launch."""
    token = _observer.set(observer)
    try:
        yield
    finally:
        _observer.reset(token)
