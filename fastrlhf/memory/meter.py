"""Counts the bytes of a tier: held now, the most at once, moved in and out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf

from fastrlhf.memory.sizes import format_size


class CapacityError(MemoryError):
    """What has to be in a tier at once is more than it may hold; the message says how much is needed."""


@dataclass
class Meter:
    """The books of one tier, in bytes.

    Attributes:
        name: "device", "host" or "disk".
        capacity: what it may hold.
        held, peak: what it holds now, and the most at once.
        moved_in, moved_out: what was copied into it and out of it from and to other tiers.
    """

    name: str
    capacity: float = inf
    held: int = 0
    peak: int = 0
    moved_in: int = 0
    moved_out: int = 0

    def hold(self, size: int) -> None:
        """Raise CapacityError where `size` more bytes do not fit, else count them."""
        if not self.fits(size):
            raise CapacityError(
                f"the {self.name} tier may hold {format_size(self.capacity)} and holds {format_size(self.held)}: "
                f"{format_size(size)} more do not fit"
            )
        self.held += size
        self.peak = max(self.peak, self.held)

    def fits(self, size: int) -> bool:
        """Whether `size` more bytes are within the capacity."""
        return self.held + size <= self.capacity

    def release(self, size: int) -> None:
        """These bytes were given back."""
        self.held -= size

    def reset(self) -> None:
        """Count peak and traffic again from now on."""
        self.peak, self.moved_in, self.moved_out = self.held, 0, 0


def table(meters: Iterable[Meter]) -> str:
    """The books of all tiers, one line each."""
    lines = [f"{'tier':<8}{'held':>10}{'peak':>10}{'capacity':>10}{'moved in':>10}{'moved out':>11}"]
    for meter in meters:
        sizes = (meter.held, meter.peak, meter.capacity, meter.moved_in, meter.moved_out)
        held, peak, capacity, moved_in, moved_out = map(format_size, sizes)
        lines.append(f"{meter.name:<8}{held:>10}{peak:>10}{capacity:>10}{moved_in:>10}{moved_out:>11}")
    return "\n".join(lines)
