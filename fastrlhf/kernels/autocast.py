"""What `torch.autocast` means for the operations.

Matrix products (`linear`, `lora_linear`, `attention`, `linear_logprob`) take their inputs in autocast's dtype; losses,
advantages and norms in float32. The others take what they are given. As in PyTorch, float64 stays as it is, and
gradients arrive in the dtype of what was passed in. Inputs are cast before they are checked, so that tensors whose
dtypes autocast has set apart go together; inside an operation it is off (`dispatch.call`).
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

Tensors = tuple[torch.Tensor | None, ...]

# One question for all devices: what a call without autocast pays.
any_enabled = torch._C._is_any_autocast_enabled


def matrix_inputs(*tensors: torch.Tensor | None) -> Tensors:
    """The tensors in autocast's dtype, where it is on for the first one's device; else as they are."""
    return _cast(tensors, None) if any_enabled() else tensors


def float32_inputs(*tensors: torch.Tensor | None) -> Tensors:
    """The tensors in float32, where autocast is on for the first one's device; else as they are."""
    return _cast(tensors, torch.float32) if any_enabled() else tensors


def switched_off(tensor: torch.Tensor) -> AbstractContextManager:
    """A block without autocast for the device of `tensor`."""
    device_type = tensor.device.type
    return torch.autocast(device_type, enabled=False) if _is_enabled(device_type) else nullcontext()


def _cast(tensors: Tensors, dtype: torch.dtype | None) -> Tensors:
    device_type = next((tensor.device.type for tensor in tensors if tensor is not None), "meta")
    if not _is_enabled(device_type):
        return tensors
    dtype = dtype or torch.get_autocast_dtype(device_type)
    return tuple(
        tensor.to(dtype)
        if tensor is not None and tensor.is_floating_point() and tensor.dtype != torch.float64
        else tensor
        for tensor in tensors
    )


def _is_enabled(device_type: str) -> bool:
    """Some devices, meta among them, have no autocast, and must not be asked."""
    return torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type)
