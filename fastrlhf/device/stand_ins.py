"""PyTorch's own names that do not ask a foreign device, and what stands in for them while sim:0 is registered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._device import _device_constructors

from fastrlhf.device import without_values
from fastrlhf.device.sim_tensor import NAME, active


@contextmanager
def stand_ins() -> Iterator[None]:
    """In the block `torch.tensor` and `torch.as_tensor` take the device, and memory can be pinned for it."""
    # `with torch.device("meta")` knows makers by a set that PyTorch builds once: of its own, not of what stands in
    _device_constructors()
    replaced = [
        *((torch, name, _made_on_host(getattr(torch, name))) for name in ("tensor", "as_tensor")),
        *((torch, name, _made_pinned(getattr(torch, name))) for name in ("empty", "zeros")),
        (torch.Tensor, "pin_memory", _pin_memory),
        (torch.Tensor, "is_pinned", _is_pinned),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    try:
        for owner, name, stand_in in replaced:
            setattr(owner, name, stand_in)
        yield
    finally:
        for owner, name, original in originals:
            setattr(owner, name, original)


def _made_on_host(maker: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """PyTorch makes the result in C++ without asking the device; an assertion fails there."""

    def make(*args: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        if device is None or torch.device(device).type != NAME:
            return maker(*args, device=device, **kwargs)
        requires_grad = kwargs.pop("requires_grad", False)
        made = maker(*args, **kwargs).to(device)
        return made.requires_grad_() if requires_grad else made

    return make


def _made_pinned(maker: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def make(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        if not pin_memory:
            return maker(*args, **kwargs)
        if active().values:
            return active().pinned.add(maker(*args, **kwargs))
        return active().pinned.add(without_values.untouched(maker(*args, device="meta", **kwargs)))

    return make


def _pin_memory(tensor: torch.Tensor, device: Any = None) -> torch.Tensor:
    """A copy in pinned memory, or the tensor itself where it is in such."""
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin a tensor on {tensor.device}: only memory of the host can be pinned")
    return tensor if active().pinned.holds(tensor) else active().pinned.add(tensor.clone())


def _is_pinned(tensor: torch.Tensor, device: Any = None) -> bool:
    return tensor.device.type == "cpu" and active().pinned.holds(tensor)
