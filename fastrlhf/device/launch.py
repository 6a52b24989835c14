"""The only place that takes a stream, guards a device or turns a launch error into an exception."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch


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
