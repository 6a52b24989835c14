"""Copies between the device and the host: asynchronous, in order on a stream for each direction, with events.

The names are those that `torch.cuda`, `torch.sim` and `torch.cpu` share; on the CPU a copy is made at once.
"""

from __future__ import annotations

from typing import Protocol

import torch

from fastrlhf.device.observe import host_waits


class Ticket(Protocol):
    """A copy under way."""

    def wait(self) -> None:
        """What the device does next comes after the copy. The host waits only if it must."""

    def synchronize(self) -> None:
        """The host waits for the copy."""


class EventTicket:
    """A copy that is done when its event is."""

    def __init__(self, backend, event):
        self._backend, self._event = backend, event

    def wait(self) -> None:
        self._backend.current_stream().wait_event(self._event)

    def synchronize(self) -> None:
        with host_waits("a chunk that the host needs"):
            self._event.synchronize()


class Copier:
    """The streams of one device."""

    def __init__(self, device: torch.device):
        self.device = device
        self._backend = torch.get_device_module(device)
        self._inbound, self._outbound = self._backend.Stream(), self._backend.Stream()

    def to_device(self, target: torch.Tensor, source: torch.Tensor) -> Ticket:
        """Copy from the host; `source` must stay as it is until the copy is done."""
        return self._copy(self._inbound, target, source)

    def to_host(self, target: torch.Tensor, source: torch.Tensor) -> Ticket:
        """Copy to the host; `target` is not to be touched until the copy is done, nor `source` freed."""
        return self._copy(self._outbound, target, source)

    def _copy(self, stream, target: torch.Tensor, source: torch.Tensor) -> Ticket:
        # after what the device has been given so far: it made the source, or still uses the target's memory
        stream.wait_event(self._event(self._backend.current_stream()))
        with self._backend.stream(stream), torch.no_grad():
            target.copy_(source, non_blocking=True)
        return EventTicket(self._backend, self._event(stream))

    def _event(self, stream):
        event = self._backend.Event()
        event.record(stream)
        return event


def host_buffer(size: int, device: torch.device) -> torch.Tensor:
    """`size` zero bytes of the host's memory, pinned where a device copies from it without the host."""
    if device.type == "cpu":
        return torch.zeros(size, dtype=torch.uint8)
    try:
        return torch.zeros(size, dtype=torch.uint8, pin_memory=True)
    except RuntimeError:
        if device.type == "cuda":
            raise
        return torch.zeros(size, dtype=torch.uint8)
