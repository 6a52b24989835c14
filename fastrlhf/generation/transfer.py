"""Between host and device without a wait: numbers on their way up, and what the rows drew on its way down."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fastrlhf.device.observe import host_waits

Drawn = tuple[int, float, float]


def upload(numbers: Sequence[int] | torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Numbers of the host as a tensor on the device. From pinned memory, or the host would wait for all that the device
    has been given so far."""
    tensor = torch.as_tensor(numbers, dtype=dtype)
    return tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


class ReadBack:
    """A place on the host for what the rows of one step drew; the device goes on while it comes.

    Args:
        drawn: tokens, log-probabilities and entropies of all rows `[B]`, as the last step left them.
        in_place: they are on the host, and read before the next step.
    """

    def __init__(self, drawn: Sequence[torch.Tensor], *, in_place: bool):
        device = drawn[0].device
        pinned = device.type != "cpu"
        self._drawn = self._kept = drawn
        if not in_place:
            self._kept = [torch.empty(each.shape, dtype=each.dtype, pin_memory=pinned) for each in drawn]
        self._arrived = torch.get_device_module(device).Event() if pinned else None
        self._count = 0

    def begin(self, count: int) -> None:
        """Bring what the first `count` rows have drawn."""
        self._count = count
        for kept, drawn in zip(self._kept, self._drawn, strict=True):
            if kept is not drawn:
                kept[:count].copy_(drawn[:count], non_blocking=True)
        if self._arrived is not None:
            self._arrived.record()

    def wait(self) -> list[Drawn]:
        """Token, log-probability and entropy of each row, once they are there; later steps are not waited for."""
        if self._arrived is not None:
            with host_waits("which tokens the rows drew"):
                self._arrived.synchronize()
        return list(zip(*(kept[: self._count].tolist() for kept in self._kept), strict=True))
