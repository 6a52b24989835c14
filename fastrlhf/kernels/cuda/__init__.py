"""CUDA C++ kernels: launchers of `fastrlhf._cuda`, in float32 and bfloat16."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native


def unavailable() -> str | None:
    """Why no kernel of this backend can run here, or None."""
    if reason := native.missing("_cuda"):
        return reason
    return None if native.module("_cuda").device_count() else "built, but there is no CUDA device or driver"


def serves(first: torch.Tensor, *_: torch.Tensor) -> str | None:
    """Why this backend cannot take tensors like `first`, an operation's first, or None."""
    if first.device.type != "cuda":
        return f"takes CUDA tensors, not {first.device.type}"
    if first.dtype not in (torch.float32, torch.bfloat16):
        return f"takes float32 and bfloat16, not {str(first.dtype).removeprefix('torch.')}"
    return None
