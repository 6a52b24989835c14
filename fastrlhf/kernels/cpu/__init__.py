"""C++ kernels for the CPU: launchers of `fastrlhf._cpu`, in float32."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native


def unavailable() -> str | None:
    """Why no kernel of this backend can run here, or None."""
    return native.missing("_cpu")


def serves(first: torch.Tensor, *_: torch.Tensor) -> str | None:
    """Why this backend cannot take tensors like `first` (an operation's floats share a dtype and device), or None."""
    if first.device.type != "cpu":
        return f"takes CPU tensors, not {first.device.type}"
    if first.dtype != torch.float32:
        return f"takes float32, not {str(first.dtype).removeprefix('torch.')}"
    return None
