"""What is logged beside the loss: sums over the micro-batches since the last log, on the device until then."""

from __future__ import annotations

import torch

from fastrlhf.device.observe import host_waits


class Meters:
    """Sums by name, and ratios of them.

    Args:
        ratios: by the metric's name, the names of the sums that are its numerator and denominator.
    """

    def __init__(self, ratios: dict[str, tuple[str, str]]):
        self.ratios = ratios
        self._sums: dict[str, torch.Tensor] = {}

    def add(self, **sums: torch.Tensor) -> None:
        """Add scalars to the sums of their names; nobody waits for the device."""
        for name, value in sums.items():
            value = value.detach()
            self._sums[name] = self._sums[name] + value if name in self._sums else value

    def take(self) -> dict[str, float]:
        """The ratios since the last call, and the sums that are no part of one; a ratio of nothing is zero."""
        if not self._sums:
            return {}
        with host_waits("what is logged"):
            values = torch.stack([value.double() for value in self._sums.values()]).tolist()
        sums = dict(zip(self._sums, values, strict=True))
        self._sums = {}
        return {
            metric: sums[above] / sums[below] if sums[below] else 0.0
            for metric, (above, below) in self.ratios.items()
            if above in sums
        }
