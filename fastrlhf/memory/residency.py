"""What is on the device now: brings pieces there, keeps them while they are used, and lets them go."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch

from fastrlhf.memory.buffers import Buffer
from fastrlhf.memory.copies import Ticket
from fastrlhf.memory.meter import Meter
from fastrlhf.memory.placement import Piece, Placement, Trace
from fastrlhf.memory.tiers import Home


class View(NamedTuple):
    """A tensor that others hold, and what it shows while its piece is on the device, and while it is not.

    (What it shows else is one NaN, expanded: it has the shape and takes no memory, and cannot be written to. Codes of
    a quantised weight show zeros, and their scales NaN.)
    """

    tensor: torch.Tensor
    present: torch.Tensor
    absent: torch.Tensor


class Resident:
    """A piece and where it is.

    Args:
        key: chunk and role.
        buffer: its memory on the device.
        home: its place in a lower tier; None if it stays on the device.
        views: tensors that show it, such as the model's parameters.
        has_content: whether it holds anything worth bringing back (gradients that were cleared do not).

    Attributes:
        flat: the buffer's tensor. here: its memory on the device is taken.
        dirty: it was changed on the device since it was last copied home.
    """

    def __init__(
        self,
        key: Piece,
        buffer: Buffer,
        home: Home | None,
        views: Sequence[View] = (),
        has_content: Callable[[], bool] = lambda: True,
    ):
        self.key, self.buffer, self.home, self.views, self.has_content = key, buffer, home, views, has_content
        self.flat = buffer.flat
        self.nbytes = self.flat.numel() * self.flat.element_size()
        self.here, self.dirty, self.shown = home is None, False, False
        self.pins = self.last_use = 0
        self.arriving: Ticket | None = None
        self.leaving: Ticket | None = None

    def show(self, present: bool) -> None:
        """Have the views show the buffer, or nothing."""
        if self.shown == present:
            return
        for view in self.views:
            view.tensor.data = view.present if present else view.absent
        self.shown = present


class Use(NamedTuple):
    """A piece that is needed on the device.

    writes: whether it will be changed there; fresh: whether what it held before does not matter.
    """

    piece: Resident
    writes: bool = False
    fresh: bool = False


class Residency:
    """The pieces on one device.

    Args:
        placement: decides what leaves.
        meter: of the device.
        prefetch: how many uses ahead pieces are brought while others are used; 0 does not.
    """

    def __init__(self, placement: Placement, meter: Meter, prefetch: int):
        self.placement, self.meter, self.prefetch = placement, meter, prefetch
        self.trace = Trace()
        self._pieces: dict[Piece, Resident] = {}
        self._here: dict[Piece, Resident] = {}
        self._clock = 0
        self._broken: BaseException | None = None

    def add(self, piece: Resident) -> Resident:
        """Take a piece over. One with a home leaves the device: its values are to be at home already."""
        self._pieces[piece.key] = piece
        if piece.home is None:
            self.meter.hold(piece.nbytes)
            piece.show(True)
        else:
            piece.buffer.give_back()
            piece.shown = True
            piece.show(False)
        return piece

    def fits(self, pieces: Iterable[Resident]) -> bool:
        """Whether pieces can be on the device at once, beside those that never leave it."""
        stays = {key: piece for key, piece in self._pieces.items() if piece.home is None}
        together = stays | {piece.key: piece for piece in pieces}
        return sum(piece.nbytes for piece in together.values()) <= self.meter.capacity

    @contextmanager
    def using(self, uses: Sequence[Use]) -> Iterator[None]:
        """The pieces are on the device for the block."""
        self.acquire(uses)
        try:
            yield
        finally:
            self.release(uses)

    def acquire(self, uses: Sequence[Use]) -> None:
        """Bring pieces to the device, and keep them there until they are released as often.

        Raises:
            TierError, CapacityError: that was not possible; and from then on whatever is asked for.
        """
        with self._whole_or_broken():
            self.trace.use(tuple(use.piece.key for use in uses))
            self._clock += 1
            for use in uses:
                use.piece.pins += 1
                use.piece.last_use = self._clock
            for use in uses:
                if not use.piece.here:
                    self._bring(use.piece, fetch=not use.fresh)
            for use in uses:
                self._make_usable(use)
            self._look_ahead()

    def release(self, uses: Sequence[Use]) -> None:
        """Let pieces go: changed ones begin their way home, and those that are not to stay give their memory back."""
        if self._broken is not None:
            return  # whatever is asked for next says so
        with self._whole_or_broken():
            for use in uses:
                piece = use.piece
                piece.pins -= 1
                if piece.pins or piece.home is None or not piece.here:
                    continue
                if piece.dirty:
                    self._send_home(piece)
                if self.placement.leaves_at_once:
                    self._evict(piece)

    def discard(self, pieces: Iterable[Resident]) -> None:
        """Give the device's memory of pieces back without copying them home: what they held is no longer needed."""
        with self._whole_or_broken():
            for piece in pieces:
                if piece.home is not None and piece.here and not piece.pins:
                    piece.dirty = False
                    self._evict(piece)

    def end_step(self) -> None:
        """What was used since the last call is expected again from now on."""
        self.trace.end_step()

    def settle(self) -> None:
        """All that is changed is at home when this returns."""
        with self._whole_or_broken():
            for piece in self._here.values():
                if piece.dirty:
                    self._send_home(piece)
                if piece.leaving is not None:
                    piece.leaving.synchronize()

    # Moving

    def _bring(self, piece: Resident, fetch: bool) -> None:
        while not self.meter.fits(piece.nbytes):
            victim = self._victim()
            if victim is None:
                break  # `hold` says what does not fit
            self._evict(victim)
        self.meter.hold(piece.nbytes)
        piece.buffer.take()
        piece.here, self._here[piece.key] = True, piece
        if fetch:
            self.meter.moved_in += piece.nbytes
            piece.home.meter.moved_out += piece.nbytes
            piece.arriving = piece.home.load(piece.flat)

    def _make_usable(self, use: Use) -> None:
        piece = use.piece
        if piece.arriving is not None:
            piece.arriving.wait()
            piece.arriving = None
        if use.writes:
            if piece.leaving is not None:
                piece.leaving.wait()
                piece.leaving = None
            piece.dirty = piece.home is not None
        piece.show(True)

    def _send_home(self, piece: Resident) -> None:
        self.meter.moved_out += piece.nbytes
        piece.home.meter.moved_in += piece.nbytes
        piece.leaving = piece.home.store(piece.flat)
        piece.dirty = False

    def _evict(self, piece: Resident) -> None:
        if piece.dirty:
            self._send_home(piece)
        for ticket in (piece.arriving, piece.leaving):
            if ticket is not None:
                ticket.wait()
        piece.arriving = piece.leaving = None
        piece.show(False)
        piece.buffer.give_back()
        self.meter.release(piece.nbytes)
        piece.here = False
        del self._here[piece.key]

    def _victim(self, later_than: float = -1) -> Resident | None:
        """Who is needed furthest in the future, and later than a number of uses; of several the longest unused."""
        idle = [piece for piece in self._here.values() if not piece.pins]
        found = max(idle, key=lambda piece: (self.trace.distance(piece.key), -piece.last_use), default=None)
        return None if found is None or self.trace.distance(found.key) <= later_than else found

    def _look_ahead(self) -> None:
        """Bring what is needed soon, in place of what is needed later."""
        for distance, key in self.trace.upcoming(self.prefetch):
            piece = self._pieces[key]
            if piece.here or not piece.has_content():
                continue
            while not self.meter.fits(piece.nbytes):
                victim = self._victim(later_than=distance)
                if victim is None:
                    return
                self._evict(victim)
            self._bring(piece, fetch=True)

    @contextmanager
    def _whole_or_broken(self) -> Iterator[None]:
        """After an error some piece may be half copied: from then on nothing is computed with any of them."""
        if self._broken is not None:
            raise self._broken
        try:
            yield
        except BaseException as error:
            self._broken = error
            raise
