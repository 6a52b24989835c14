"""Flat buffers of the device whose memory is given back and taken again, while every view of them stays what it is."""

from __future__ import annotations

import ctypes
import mmap
import sys
from math import prod
from typing import Protocol

import torch

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # malloc.h


class Buffer(Protocol):
    """A flat buffer. What it held is lost when it is given back.

    Attributes:
        flat: the tensor; it must not be touched while its memory is given back, nor any view of it.
    """

    flat: torch.Tensor

    def give_back(self) -> None:
        """Return the memory to whom it came from."""

    def take(self) -> None:
        """Have memory again."""


def make_buffer(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Buffer:
    """A buffer of zeros."""
    if device.type == "cpu" and sys.platform == "linux":
        return MappedBuffer(shape, dtype)
    return ResizedBuffer(torch.zeros(shape, dtype=dtype, device=device))


class ResizedBuffer:
    """Memory of PyTorch's allocator."""

    def __init__(self, flat: torch.Tensor):
        self.flat = flat
        self._size = flat.numel() * flat.element_size()

    def give_back(self) -> None:
        self._resize(0)

    def take(self) -> None:
        self._resize(self._size)

    def _resize(self, size: int) -> None:
        self.flat.untyped_storage().resize_(size)
        self.flat.detach()  # the simulated device books a storage whenever a view of it is made


class MappedBuffer:
    """Pages of the operating system, which go at once and leave no holes."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype):
        size = prod(shape) * dtype.itemsize
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        self._pages = mmap.mmap(-1, max(size, 1), flags=flags)
        self.flat = torch.frombuffer(self._pages, dtype=torch.uint8)[:size].view(dtype).view(shape)

    def give_back(self) -> None:
        self._pages.madvise(mmap.MADV_DONTNEED)

    def take(self) -> None:
        """Pages come when they are touched."""


def return_large_allocations() -> None:
    """Have the C library give what PyTorch frees back to the operating system, as far as it is 1 MB or more.

    By default it keeps blocks up to 32 MB for itself once some were freed, and small allocations then break them up:
    the gradients of a run of 96 layers of 4 MB left 450 MB behind in its first backward.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return  # another C library
    mallopt(_MMAP_THRESHOLD, 1 << 20)
    mallopt(_TRIM_THRESHOLD, 8 << 20)
