"""What holds the memory of the simulated device now, and what held it when it held the most.

A piece may be named anew as long as it is known, also after it is gone: a gradient is known to be one only once it has
been computed, an activation once the forward has ended and kept it. So the peak keeps the pieces, and reads their names
when it is asked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import torch

# The first part of a holder's name, as in "activations / layers.3.mlp"; what nobody named so is of no kind.
KINDS = ("parameters", "gradients", "optimizer", "activations", "cache", "temporaries")
OTHER = "other"


@dataclass(eq=False)
class Piece:
    """Memory of the device: where its values are, who holds it, the bytes booked, and since which change."""

    storage: torch.UntypedStorage
    holder: str
    booked: int = 0
    since: int = 0


class Holdings:
    """The pieces of a device, in bytes.

    Attributes:
        live, peak: bytes held now, and the most at once.
        changes: how often a piece came, went or changed its size; `Piece.since` is of this count.
    """

    def __init__(self):
        self.live = self.peak = 0
        self._pieces: dict[Piece, None] = {}
        self.changes = self._changes_at_peak = 0
        # what the peak held and what is no longer held, with the bytes it had
        self._gone: list[tuple[Piece, int]] = []

    def restart(self) -> None:
        """The peak is what is held now."""
        self.peak, self._changes_at_peak = self.live, self.changes
        self._gone.clear()

    def book(self, piece: Piece, size: int) -> None:
        """`piece` has `size` bytes from now on."""
        self._pieces[piece] = None
        if size == piece.booked:
            return
        if self._was_at_peak(piece):
            self._gone.append((piece, piece.booked))
        self.changes += 1
        self.live += size - piece.booked
        piece.booked, piece.since = size, self.changes
        if self.live > self.peak:
            self.restart()

    def drop(self, piece: Piece) -> None:
        """`piece` is no more."""
        self.book(piece, 0)
        del self._pieces[piece]

    @property
    def pieces(self) -> Iterable[Piece]:
        """Those held now, the oldest first."""
        return self._pieces

    @property
    def holders(self) -> Counter[str]:
        """Bytes held now, by holder."""
        return _total((piece, piece.booked) for piece in self._pieces)

    @property
    def at_peak(self) -> Counter[str]:
        """Bytes held at the peak, by holder; they sum up to it."""
        still = ((piece, piece.booked) for piece in self._pieces if self._was_at_peak(piece))
        return _total((*still, *self._gone))

    def _was_at_peak(self, piece: Piece) -> bool:
        return piece.booked > 0 and piece.since <= self._changes_at_peak


def by_kind(holders: Counter[str]) -> Counter[str]:
    """The bytes of holders by kind, those of no kind as "other"."""
    kinds: Counter[str] = Counter()
    for holder, size in holders.items():
        kind = holder.partition(" / ")[0]
        kinds[kind if kind in KINDS else OTHER] += size
    return kinds


def _total(pieces: Iterable[tuple[Piece, int]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for piece, size in pieces:
        total[piece.holder] += size
    return total
