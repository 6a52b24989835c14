"""C++ kernels for the CPU: launchers of `fastrlhf._cpu`, in float32."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native


def unavailable() -> str | None:
    """Why no kernel of this backend can run here, or None."""
    return native.missing("_cpu")


def serves(first: torch.Tensor, *others: torch.Tensor) -> str | None:
    """Why this backend cannot take these tensors, or None: the first is float32, and none of fewer bits.

    Others may be float64, as sums are; where the first is a gradient of statistics, the operands may still be narrow.
    """
    if first.device.type != "cpu":
        return f"takes CPU tensors, not {first.device.type}"
    for tensor in (first, *others):
        if tensor.dtype in (torch.bfloat16, torch.float16) or (
            tensor is first and tensor.dtype != torch.float32
        ):
            return f"takes float32, not {str(tensor.dtype).removeprefix('torch.')}"
    return None
