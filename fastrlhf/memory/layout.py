"""Which parameters lie in which chunk, and where. Nothing here holds a tensor."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import prod

import torch

ALIGNMENT = (
    64  # bytes: a vector register and a cache line; matrix products then give the same bits in every tier
)
# A chunk's copy costs about as much more as this many bytes (a launch and an event: 10 µs at 25 GB/s).
CHUNK_COST = 256 * 1024
LARGEST_CHUNK = 256 * 1024**2


@dataclass(frozen=True)
class Wanted:
    """A parameter to be placed.

    Attributes:
        name, shape, dtype: its own; trainable: whether gradients and optimizer state lie beside it.
        unit: number of the unit that needs it (the first, if tied).
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    trainable: bool
    unit: int

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def span(self) -> int:
        """Elements that it takes in a chunk: a multiple of the alignment."""
        step = ALIGNMENT // self.dtype.itemsize
        return -(-self.numel // step) * step


@dataclass(frozen=True)
class Slot:
    """A parameter's place in a chunk: `flat[offset : offset + numel].view(shape)`."""

    name: str
    shape: tuple[int, ...]
    offset: int
    numel: int


@dataclass(frozen=True)
class Layout:
    """One chunk: parameters of one dtype, all trainable or all frozen, one after the other.

    Attributes:
        index: its number.
        numel: elements of the flat buffer.
        slots: the parameters in it; q, k and v of a layer (and gate and up) are neighbours without a gap wherever their
            sizes are multiples of the alignment, so that the fused weight is a view.
    """

    index: int
    dtype: torch.dtype
    trainable: bool
    numel: int
    slots: tuple[Slot, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of the parameters' buffer."""
        return self.numel * self.dtype.itemsize


def lay_out(parameters: Sequence[Wanted], chunk_bytes: int) -> list[Layout]:
    """Chunks of at most `chunk_bytes`, filled in order; a larger parameter gets one of its own.

    Trainable and frozen parameters, and dtypes, do not share chunks. Each chunk is as large as what is in it.
    """
    layouts: list[Layout] = []
    kinds = dict.fromkeys((wanted.dtype, wanted.trainable) for wanted in parameters)
    for dtype, trainable in kinds:
        of_kind = [wanted for wanted in parameters if (wanted.dtype, wanted.trainable) == (dtype, trainable)]
        for members in _filled(of_kind, chunk_bytes // dtype.itemsize):
            offset, slots = 0, []
            for wanted in members:
                slots.append(Slot(wanted.name, wanted.shape, offset, wanted.numel))
                offset += wanted.span
            layouts.append(Layout(len(layouts), dtype, trainable, offset, tuple(slots)))
    return layouts


def _filled(parameters: Iterable[Wanted], limit: int) -> Iterable[list[Wanted]]:
    members: list[Wanted] = []
    used = 0
    for wanted in parameters:
        if members and used + wanted.span > limit:
            yield members
            members, used = [], 0
        members.append(wanted)
        used += wanted.span
    if members:
        yield members


def search_chunk_bytes(parameters: Sequence[Wanted], largest: int = LARGEST_CHUNK) -> int:
    """The chunk size that wastes least.

    Waste is what a unit brings to the device that is not its own (a chunk is moved as a whole), added over all units,
    and `CHUNK_COST` for each chunk. Tried are the sizes of units, and halves and quarters of them.

    Args:
        largest: bound of the size (a single parameter may be larger still).
    """
    units = [
        sum(wanted.span * wanted.dtype.itemsize for wanted in members)
        for _, members in groupby(
            parameters, key=lambda wanted: (wanted.unit, wanted.trainable, wanted.dtype)
        )
    ]
    sizes = {size // parts for size in units for parts in (1, 2, 4)} | {sum(units)}
    sizes = {min(max(size, ALIGNMENT), largest) for size in sizes}
    return min(sorted(sizes, reverse=True), key=lambda size: _waste(parameters, size), default=ALIGNMENT)


def _waste(parameters: Sequence[Wanted], chunk_bytes: int) -> int:
    layouts = lay_out(parameters, chunk_bytes)
    owner = {wanted.name: wanted.unit for wanted in parameters}
    brought = sum(layout.nbytes * len({owner[slot.name] for slot in layout.slots}) for layout in layouts)
    own = sum(layout.nbytes for layout in layouts)
    return brought - own + CHUNK_COST * len(layouts)
