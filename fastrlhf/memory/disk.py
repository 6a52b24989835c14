"""A file of fixed size that a worker thread reads and writes: the disk tier's storage."""

from __future__ import annotations

import ctypes
import os
import tempfile
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import torch


class TierError(RuntimeError):
    """What a tier holds cannot be written or read; nothing computed from it may be used."""


class DiskFile:
    """Space on a disk, reserved when it is made and given back when the process ends, however it ends.

    The file has no name from the moment it is opened, so a killed process leaves nothing behind. One thread does the
    reading and writing, in the order asked for.

    Args:
        directory: where; it has to exist. size: bytes.

    Raises:
        TierError: the directory is missing, or the space is not there.
    """

    def __init__(self, directory: str | Path, size: int):
        self.directory = Path(directory)
        try:
            with tempfile.TemporaryFile(dir=self.directory, prefix=".fastrlhf-", buffering=0) as file:
                self._descriptor = os.dup(file.fileno())
        except OSError as error:
            raise TierError(f"disk={str(directory)!r} cannot be used: {error.strerror}") from error
        try:
            os.posix_fallocate(self._descriptor, 0, max(size, 1))
        except OSError as error:
            os.close(self._descriptor)
            raise TierError(
                f"{size / 1e6:,.0f} MB cannot be reserved in disk={str(directory)!r} ({error.strerror}): free some "
                "space, or name another directory"
            ) from error
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="fastrlhf-disk")
        self._failed: TierError | None = None

    def write(self, source: torch.Tensor, offset: int) -> Future[None]:
        """Write the bytes of a contiguous tensor of the host; it must stay as it is until then."""
        return self._worker.submit(self._run, os.pwritev, "written", source, offset)

    def read(self, target: torch.Tensor, offset: int) -> Future[None]:
        """Read as many bytes as a contiguous tensor of the host has into it."""
        return self._worker.submit(self._run, os.preadv, "read", target, offset)

    def close(self) -> None:
        """Wait for what is under way, and give the space back."""
        self._worker.shutdown(wait=True)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _run(self, call: Callable[..., int], done: str, tensor: torch.Tensor, offset: int) -> None:
        """In the worker. After a failure nothing is done any more: what a later read finds could be stale."""
        if self._failed is None:
            try:
                _all_of(call, done, self._descriptor, tensor, offset)
            except TierError as error:
                self._failed = error
        if self._failed is not None:
            raise self._failed


def _all_of(call: Callable[..., int], done: str, descriptor: int, tensor: torch.Tensor, offset: int) -> None:
    """A call may do less than asked; it is repeated until all is done or nothing more is."""
    left = memory_of(tensor)
    while left.nbytes:
        try:
            count = call(descriptor, [left], offset)
        except OSError as error:
            raise TierError(
                f"{left.nbytes} bytes of the disk tier could not be {done}: {error.strerror}"
            ) from error
        if count == 0:
            raise TierError(f"the disk tier's file ends {left.nbytes} bytes early: it was cut short")
        left, offset = left[count:], offset + count


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor. (Not through numpy, which would keep its storage from being resized.)"""
    size = tensor.numel() * tensor.element_size()
    return memoryview((ctypes.c_char * size).from_address(tensor.data_ptr())).cast("B")
