"""Activations that a backward computes again from others that are kept in any case, where that costs little."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch.autograd.graph import saved_tensors_hooks


def computed_again(tensor: torch.Tensor, compute: Callable[[], torch.Tensor]) -> AbstractContextManager:
    """What the operations in the block save of `tensor` for their backward is computed again there, once for all.

    Gradient checkpointing, which does that on a larger scale, is left alone, and so are others who look after what
    autograd saves, and torch.compile.

    Args:
        tensor: what operations in the block read.
        compute: gives the same numbers, from tensors that a backward needs and so keeps.
    """
    if not (torch.is_grad_enabled() and tensor.requires_grad) or _others_look_after_it():
        return nullcontext()
    again = _Again(tensor, compute)
    return saved_tensors_hooks(again.pack, again.unpack)


class _Again:
    def __init__(self, tensor: torch.Tensor, compute: Callable[[], torch.Tensor]):
        self.address, self.numel, self.compute = tensor.data_ptr(), tensor.numel(), compute
        self.saved = self.to_give = 0
        self.found: torch.Tensor | None = None

    def pack(self, tensor: torch.Tensor) -> torch.Tensor | torch.Size:
        if tensor.data_ptr() != self.address or tensor.numel() != self.numel or not tensor.is_contiguous():
            return tensor
        self.saved += 1
        return tensor.shape

    def unpack(self, packed: torch.Tensor | torch.Size) -> torch.Tensor:
        if isinstance(packed, torch.Tensor):
            return packed
        if self.found is None:
            self.found, self.to_give = self.compute().detach(), self.saved
        found = self.found.view(packed)
        self.to_give -= 1
        if self.to_give == 0:
            self.found = None
        return found


def _others_look_after_it() -> bool:
    if torch.compiler.is_compiling():
        return True
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and not isinstance(getattr(hooks[0], "__self__", None), _Again)
