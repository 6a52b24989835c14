"""What `lora_linear` is told where all rows have one adapter: made once, and not by two kernels before each product."""

from __future__ import annotations

import functools

import torch

from fastrlhf.device.observe import changes


def whole_batch(rows: int, device: torch.device) -> torch.Tensor:
    """The offsets of one group that has all rows, int32 `[0, rows]`."""
    return _whole_batch(rows, device, changes())


def scale_of(scaling: float, device: torch.device) -> torch.Tensor:
    """The adapter's scale, float32 `[1]`. It stays where it is: a CUDA graph may read it."""
    return _scale_of(scaling, device, changes())


@functools.lru_cache(maxsize=16)
def _whole_batch(rows: int, device: torch.device, watchers: int) -> torch.Tensor:
    with torch.inference_mode(False):
        # not from a list: a GPU would have to wait for the copy
        return rows * torch.arange(2, dtype=torch.int32, device=device)


@functools.cache
def _scale_of(scaling: float, device: torch.device, watchers: int) -> torch.Tensor:
    with torch.inference_mode(False):
        return torch.full((1,), scaling, dtype=torch.float32, device=device)
