"""Where each piece has its home, and which leaves the device when room is needed. Numbers only, no tensors."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

from fastrlhf.memory.meter import CapacityError
from fastrlhf.memory.sizes import format_size

LONGEST_STEP = 1 << 16  # uses; a longer one (a rollout that streams for hours) is cut into several

Key = Hashable


class Trace:
    """The uses of a step, as recorded in the step before: it tells how soon each piece is needed again.

    A use is the tuple of keys that were needed together. Where a step departs from the one before, the place in it is
    found again at the next use that both have.
    """

    def __init__(self) -> None:
        self._uses: list[tuple[Key, ...]] = []
        self._places: dict[Key, list[int]] = {}  # where in `_uses` a piece, or all of a use, stands
        self._next = 0
        self._recording: list[tuple[Key, ...]] = []

    def use(self, keys: tuple[Key, ...]) -> None:
        """These pieces are needed now."""
        self._recording.append(keys)
        places = self._places.get(("use", keys))
        if places:
            self._next = (self._following(places) + 1) % len(self._uses)
        if len(self._recording) >= LONGEST_STEP:
            self.end_step()

    def end_step(self) -> None:
        """A step is over: what was recorded is expected from now on."""
        if not self._recording:
            return
        self._uses, self._recording, self._next = self._recording, [], 0
        self._places = {}
        for place, keys in enumerate(self._uses):
            for key in (*dict.fromkeys(keys), ("use", keys)):
                self._places.setdefault(key, []).append(place)

    def distance(self, key: Key) -> float:
        """How many uses from now the piece is needed: 0 for the next one, inf if it was not needed at all."""
        places = self._places.get(key)
        return inf if not places else (self._following(places) - self._next) % len(self._uses)

    def upcoming(self, count: int) -> Iterator[tuple[int, Key]]:
        """The next `count` uses' pieces with their distances, soonest first."""
        for distance in range(min(count, len(self._uses))):
            for key in self._uses[(self._next + distance) % len(self._uses)]:
                yield distance, key

    def _following(self, places: list[int]) -> int:
        """The first of some places from the present one on, around the end of the step."""
        found = bisect_left(places, self._next)
        return places[found] if found < len(places) else places[0]


@dataclass(frozen=True)
class AutoPlacement:
    """What is needed furthest in the future leaves first (Belady, 1966), and only when room is needed."""

    leaves_at_once = False

    def device_homes(self, chunks: Sequence[ChunkSizes], capacity: float, reserve: int) -> set[Piece]:
        """All where all fits; else, once all parameters would, whole chunks with their optimizer state."""
        everything = {piece for index, chunk in enumerate(chunks) for piece in chunk.pieces(index)}
        if sum(chunk.total for chunk in chunks) <= capacity:
            return everything
        room = capacity - reserve - sum(chunk.parameters for chunk in chunks)
        kept: set[Piece] = set()
        for index, chunk in enumerate(chunks):
            room -= chunk.gradients + chunk.optimizer
            if room < 0:
                break
            kept |= set(chunk.pieces(index))
        return kept


@dataclass(frozen=True)
class StaticPlacement:
    """Fractions of the chunks that stay on the device; the others leave as soon as they were used.

    Attributes:
        parameters: of 1; optimizer: of 1, the gradients and optimizer state (of chunks whose parameters stay, at most).
    """

    parameters: float = 0.0
    optimizer: float = 0.0
    leaves_at_once = True

    def __post_init__(self) -> None:
        if not 0 <= self.optimizer <= self.parameters <= 1:
            raise ValueError(
                f"placement has parameters={self.parameters} and optimizer={self.optimizer}, expected "
                "0 <= optimizer <= parameters <= 1"
            )

    def device_homes(self, chunks: Sequence[ChunkSizes], capacity: float, reserve: int) -> set[Piece]:
        """The first chunks."""
        kept: set[Piece] = set()
        for index, chunk in enumerate(chunks):
            if index < round(self.parameters * len(chunks)):
                kept.add(Piece(index, "parameters"))
            if index < round(self.optimizer * len(chunks)):
                kept |= set(chunk.pieces(index))
        return kept


Placement = AutoPlacement | StaticPlacement


class Piece(NamedTuple):
    """Part of a chunk that moves as a whole. role: "parameters", "gradients" or "optimizer"."""

    chunk: int
    role: str


class ChunkSizes(NamedTuple):
    """Bytes of a chunk's pieces; a frozen chunk has parameters alone."""

    parameters: int
    gradients: int = 0
    optimizer: int = 0

    @property
    def total(self) -> int:
        return sum(self)

    def pieces(self, index: int) -> Iterator[Piece]:
        """The pieces that it has."""
        for role, size in self._asdict().items():
            if size:
                yield Piece(index, role)

    def size(self, piece: Piece) -> int:
        return getattr(self, piece.role)


class Capacities(NamedTuple):
    """Bytes that each tier may hold; 0 where there is none.

    buffers: how many buffers of the host's memory a piece's way to the disk and back takes (0: none).
    """

    device: float
    host: float = 0
    disk: float = 0
    buffers: int = 0


def plan_homes(
    chunks: Sequence[ChunkSizes],
    placement: Placement,
    capacities: Capacities,
    working_sets: Iterable[tuple[str, set[Piece]]],
) -> dict[Piece, str]:
    """The tier in which each piece has its home: the device for those that never leave it, else host, then disk.

    The host takes parameters first, which are needed twice a step and more, then gradients, then optimizer state.

    Args:
        working_sets: what has to be on the device at the same time, each with a name for messages.

    Raises:
        CapacityError: a working set does not fit on the device beside what stays there, or the homes do not fit at all;
            the message says how many bytes are needed.
    """
    working_sets = list(working_sets)

    def size(pieces: Iterable[Piece]) -> int:
        return sum(chunks[piece.chunk].size(piece) for piece in pieces)

    def largest(kept: set[Piece]) -> tuple[int, str]:
        return max(((size(pieces - kept), name) for name, pieces in working_sets), default=(0, ""))

    device = capacities.device
    kept = placement.device_homes(chunks, device, largest(set())[0])
    # a chunk whose parameters never leave the device is updated there
    working_sets += [
        (f"the update of chunk {index}", set(chunk.pieces(index)))
        for index, chunk in enumerate(chunks)
        if Piece(index, "parameters") in kept
    ]
    stays, (needed, name) = size(kept), largest(kept)
    if stays + needed > device:
        raise CapacityError(
            f"device_memory is {format_size(device)}, but {name or 'what stays there'} needs "
            f"{format_size(stays + needed)} ({stays + needed} bytes) on the device at once"
            + (f", {format_size(stays)} of it for what the placement keeps there" if stays else "")
        )
    outside = [
        Piece(index, role)
        for role in ChunkSizes._fields
        for index, chunk in enumerate(chunks)
        if Piece(index, role) in set(chunk.pieces(index)) - kept
    ]
    below, room = _split(outside, size, capacities)
    if room < 0:
        raise CapacityError(
            f"{format_size(size(outside))} ({size(outside)} bytes) have no place on the device, and host_memory is "
            f"{format_size(capacities.host)} and the disk {format_size(capacities.disk)}: {format_size(-room)} "
            f"({-room:.0f} bytes) more are needed; give more host_memory, or a directory as disk"
        )
    return dict.fromkeys(kept, "device") | below


def _split(outside: list[Piece], size, capacities: Capacities) -> tuple[dict[Piece, str], float]:
    """Host or disk for each piece, and what is left (less than nothing: missing) of the room for them."""
    if size(outside) <= capacities.host:
        return dict.fromkeys(outside, "host"), capacities.host - size(outside)
    buffers = capacities.buffers * max(size([piece]) for piece in outside)
    host, disk = capacities.host - buffers, capacities.disk
    if host < 0:
        return {}, host
    homes = {}
    for piece in outside:
        homes[piece] = "host" if size([piece]) <= host else "disk"
        if homes[piece] == "host":
            host -= size([piece])
        else:
            disk -= size([piece])
    return homes, disk
