"""Triton kernels and their launchers, for CUDA devices; on the CPU where Triton's interpreter is switched on."""

from __future__ import annotations

import importlib.util
import os

import torch


def interpreted() -> bool:
    """Whether TRITON_INTERPRET=1 makes Triton run kernels on the CPU (set before its first import)."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def unavailable() -> str | None:
    """Why no kernel of this backend can run here, or None."""
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed"
    if interpreted() or torch.cuda.is_available():
        return None
    return "there is no CUDA device"


def serves(first: torch.Tensor, *_: torch.Tensor) -> str | None:
    """Why this backend cannot take tensors like `first`, an operation's first, or None."""
    wanted = "cpu" if interpreted() else "cuda"
    if first.device.type != wanted:
        return f"takes {wanted.upper()} tensors, not {first.device.type}"
    if first.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"takes float32, bfloat16 and float16, not {str(first.dtype).removeprefix('torch.')}"
    return None
