"""The tiers below the device: memory of the host and files on a disk, and how a piece goes there and comes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from fastrlhf.memory.copies import Copier, Ticket, host_buffer
from fastrlhf.memory.disk import DiskFile
from fastrlhf.memory.meter import Meter

PAGE = 4096
STAGING_BUFFERS = 4


class Home(Protocol):
    """The place of one piece in a tier. Flat buffers given have the piece's dtype and size."""

    meter: Meter

    def load(self, flat: torch.Tensor) -> Ticket:
        """Begin to copy the piece to the device."""

    def store(self, flat: torch.Tensor) -> Ticket:
        """Begin to copy the piece from the device; `flat` may change once the ticket was waited for."""

    def fill(self, values: torch.Tensor) -> None:
        """Take values from a tensor of the host, now."""

    @contextmanager
    def on_host(self, like: torch.Tensor, writes: bool) -> Iterator[torch.Tensor]:
        """The piece as a tensor of the host shaped as `like`, for the block; what is written there stays."""

    def values(self, like: torch.Tensor, start: int, numel: int) -> torch.Tensor:
        """Some elements, flat, as a tensor of the host of the dtype of `like`: as they lie in memory, else a copy."""


class HostHome:
    """Memory of the host."""

    def __init__(self, size: int, copier: Copier, meter: Meter):
        meter.hold(size)
        self.meter, self._copier = meter, copier
        self._bytes = host_buffer(size, copier.device)
        self._last: Ticket | None = None

    def load(self, flat: torch.Tensor) -> Ticket:
        self._last = self._copier.to_device(flat, self._as(flat))
        return self._last

    def store(self, flat: torch.Tensor) -> Ticket:
        self._last = self._copier.to_host(self._as(flat), flat)
        return self._last

    def fill(self, values: torch.Tensor) -> None:
        self._as(values).copy_(values)

    @contextmanager
    def on_host(self, like: torch.Tensor, writes: bool) -> Iterator[torch.Tensor]:
        self._settle()
        yield self._as(like)

    def values(self, like: torch.Tensor, start: int, numel: int) -> torch.Tensor:
        self._settle()
        return self._as(like).view(-1)[start : start + numel]

    def _settle(self) -> None:
        if self._last is not None:
            self._last.synchronize()
            self._last = None

    def _as(self, like: torch.Tensor) -> torch.Tensor:
        return self._bytes.view(like.dtype).view(like.shape)


class DiskTier:
    """A file, and the buffers through which a device's pieces pass on their way.

    Args:
        directory: where the file is made by `open`.
        copier: of the device; pieces of a device that is the CPU go straight to the file.
        meter: of this tier. host: counts the staging buffers.
    """

    def __init__(self, directory: str | Path, copier: Copier, meter: Meter, host: Meter):
        self.directory, self.copier, self.meter, self.host = directory, copier, meter, host
        self._size = self._largest = 0
        self._staging: deque[Staging] = deque()
        self._leaving: DeviceToDisk | None = None
        self._arriving: list[DiskToDevice] = []

    def home(self, size: int) -> DiskHome:
        """Room for a piece. To be asked for before `open`."""
        self.meter.hold(size)
        home = DiskHome(self, self._size)
        self._size += -(-size // PAGE) * PAGE
        self._largest = max(self._largest, size)
        return home

    def open(self) -> None:
        """Reserve the space.

        Raises:
            TierError: it is not there.
        """
        self._file = DiskFile(self.directory, self._size)
        for _ in range(0 if self.direct else STAGING_BUFFERS):
            self.host.hold(self._largest)
            self._staging.append(Staging(host_buffer(self._largest, self.copier.device)))

    @property
    def direct(self) -> bool:
        """Whether the device's memory is the host's."""
        return self.copier.device.type == "cpu"

    def read(self, target: torch.Tensor, offset: int) -> Future[None]:
        """Read into memory of the host, after all that was to be written before."""
        self.settle()
        return self._file.read(target, offset)

    def write(self, source: torch.Tensor, offset: int) -> Future[None]:
        """Write memory of the host."""
        self.settle()
        return self._file.write(source, offset)

    def settle(self) -> None:
        """Pieces that have reached their buffer go on from it, down to the file or up to the device."""
        if self._leaving is not None:
            leaving, self._leaving = self._leaving, None
            leaving.write(self._file)
        self._arriving = [piece for piece in self._arriving if not piece.go_on()]

    def later(self, leaving: DeviceToDisk) -> None:
        """Write a piece once it has arrived in its buffer: at the next use of the tier, not to make the host wait."""
        self.settle()
        self._leaving = leaving

    def soon(self, arriving: DiskToDevice) -> None:
        """Copy a piece to the device once it has been read."""
        self._arriving.append(arriving)

    def staging(self) -> Staging:
        """The buffer that was given longest ago, once it is free."""
        self._staging.rotate(-1)
        oldest = self._staging[-1]
        if self._leaving is not None and self._leaving.staging is oldest:
            self.settle()
        oldest.free()
        return oldest

    def close(self) -> None:
        """Give the space back."""
        self._leaving = None
        if hasattr(self, "_file"):
            self._file.close()


class Staging:
    """A fixed buffer of the host, and what still uses it."""

    def __init__(self, memory: torch.Tensor):
        self.memory = memory
        self.busy: Ticket | None = None

    def free(self) -> None:
        """Wait until nothing uses it."""
        if self.busy is not None:
            self.busy.synchronize()
            self.busy = None

    def as_(self, like: torch.Tensor) -> torch.Tensor:
        """Its first bytes as a tensor like another."""
        size = like.numel() * like.element_size()
        return self.memory[:size].view(like.dtype).view(like.shape)


class DiskHome:
    """A place in the file of a disk tier."""

    def __init__(self, tier: DiskTier, offset: int):
        self.tier, self.offset, self.meter = tier, offset, tier.meter

    def load(self, flat: torch.Tensor) -> Ticket:
        if self.tier.direct:
            return FileTicket(self.tier.read(flat, self.offset))
        arriving = DiskToDevice(self.tier, self.offset, flat)
        self.tier.soon(arriving)
        return arriving

    def store(self, flat: torch.Tensor) -> Ticket:
        if self.tier.direct:
            return FileTicket(self.tier.write(flat, self.offset))
        leaving = DeviceToDisk(self.tier, self.offset, flat)
        self.tier.later(leaving)
        return leaving

    def fill(self, values: torch.Tensor) -> None:
        self.tier.write(values, self.offset).result()

    @contextmanager
    def on_host(self, like: torch.Tensor, writes: bool) -> Iterator[torch.Tensor]:
        staging = self.tier.staging()
        values = staging.as_(like)
        self.tier.read(values, self.offset).result()
        self.meter.moved_out += values.nbytes
        yield values
        if writes:
            self.meter.moved_in += values.nbytes
            staging.busy = FileTicket(self.tier.write(values, self.offset))

    def values(self, like: torch.Tensor, start: int, numel: int) -> torch.Tensor:
        read = torch.empty(numel, dtype=like.dtype)
        self.tier.read(read, self.offset + start * like.element_size()).result()
        return read


class FileTicket:
    """Done when the worker is."""

    def __init__(self, future: Future[None]):
        self._future = future

    def wait(self) -> None:
        self._future.result()

    synchronize = wait


class DiskToDevice:
    """A piece on its way up: read into a buffer, then copied to the device."""

    def __init__(self, tier: DiskTier, offset: int, flat: torch.Tensor):
        self._tier, self._flat = tier, flat
        self._staging = tier.staging()
        self._reading = tier.read(self._staging.as_(flat), offset)
        self._copy: Ticket | None = None
        self._staging.busy = self

    def go_on(self) -> bool:
        """Whether the second half has begun; begins it if it can."""
        if self._copy is None and self._reading.done():
            self._begin_copy()
        return self._copy is not None

    def wait(self) -> None:
        self._begin_copy().wait()

    def synchronize(self) -> None:
        self._begin_copy().synchronize()

    def _begin_copy(self) -> Ticket:
        if self._copy is None:
            self._reading.result()
            self._copy = self._tier.copier.to_device(self._flat, self._staging.as_(self._flat))
        return self._copy


class DeviceToDisk:
    """A piece on its way down: copied to a buffer, then written."""

    def __init__(self, tier: DiskTier, offset: int, flat: torch.Tensor):
        self.staging = tier.staging()
        self._offset, self._values = offset, self.staging.as_(flat)
        self._copy = tier.copier.to_host(self._values, flat)
        self._writing: Future[None] | None = None
        self._tier = tier
        self.staging.busy = self

    def write(self, file: DiskFile) -> None:
        """Go on from the buffer to the file."""
        self._copy.synchronize()
        self._writing = file.write(self._values, self._offset)

    def wait(self) -> None:
        self._copy.wait()

    def synchronize(self) -> None:
        self._tier.settle()
        self._writing.result()
