"""C++ kernels for the CPU: launchers of `fastrlhf._cpu`, in float32."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native

_NARROW = (torch.bfloat16, torch.float16)


def unavailable() -> str | None:
    """Why no kernel of this backend can run here, or None."""
    return native.missing("_cpu")


def serves(first: torch.Tensor, *others: torch.Tensor) -> str | None:
    """Why this backend cannot take these tensors, or None: the first is float32, and none of fewer bits.

    Others may be float64, as sums are; where the first is a gradient of statistics, the operands may still be narrow.
    """
    if not first.is_cpu:
        return f"takes CPU tensors, not {first.device.type}"
    if first.dtype != torch.float32:
        return _takes_float32(first)
    for tensor in others:
        if tensor.dtype in _NARROW:
            return _takes_float32(tensor)
    return None


def _takes_float32(tensor: torch.Tensor) -> str:
    return f"takes float32, not {str(tensor.dtype).removeprefix('torch.')}"
