"""Chunks with their tensors: parameters, gradients and optimizer state as views of flat buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

from fastrlhf.memory.buffers import make_buffer
from fastrlhf.memory.deferred import is_deferred, read_deferred
from fastrlhf.memory.layout import Layout, Slot
from fastrlhf.memory.placement import ChunkSizes, Piece
from fastrlhf.memory.residency import Resident, View
from fastrlhf.memory.tiers import Home

_MASTERED = (torch.bfloat16,)


def state_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype of the optimizer's state for parameters of `dtype`."""
    return torch.float32 if dtype in _MASTERED else dtype


def state_rows(dtype: torch.dtype) -> int:
    """Buffers of the optimizer's state: both moments, and a master of parameters that are not precise enough."""
    return 3 if dtype in _MASTERED else 2


def chunk_sizes(layout: Layout) -> ChunkSizes:
    """Bytes of the pieces of a chunk."""
    if not layout.trainable:
        return ChunkSizes(layout.nbytes)
    state = layout.numel * state_dtype(layout.dtype).itemsize * state_rows(layout.dtype)
    return ChunkSizes(layout.nbytes, layout.nbytes, state)


@dataclass
class Chunk:
    """A chunk of a model that is trained or frozen.

    Attributes:
        layout: what lies where.
        owners: the parameters, in the order of `layout.slots`.
        parameters, gradients, optimizer: its pieces; the last two are None if it is frozen. The optimizer's is
            `[rows, N]`: exp_avg, exp_avg_sq and, for bfloat16 parameters, their float32 masters.
        stored_gradients: for each parameter the tensor that is its `.grad` once a backward has reached it.
        norms: of the gradients, by slot, from the last backward.
        changed: parameters were written to by others than the optimizer, which has to look after its masters.
    """

    layout: Layout
    owners: tuple[nn.Parameter, ...]
    parameters: Resident
    gradients: Resident | None = None
    optimizer: Resident | None = None
    stored_gradients: tuple[torch.Tensor, ...] = ()
    norms: dict[Slot, torch.Tensor] = field(default_factory=dict)
    changed: bool = True

    def has_gradient(self, index: int) -> bool:
        """Whether the parameter of slot `index` has a gradient (none after `zero_grad`)."""
        return self.owners[index].grad is self.stored_gradients[index]

    @property
    def has_gradients(self) -> bool:
        """Whether any parameter has."""
        return any(map(self.has_gradient, range(len(self.owners))))


def make_chunk(
    layout: Layout,
    owners: Sequence[nn.Parameter],
    device: torch.device,
    home: Callable[[Piece, int], Home | None],
    adopt: Callable[[Resident], Resident],
) -> Chunk:
    """Move parameters into a chunk: their values go home, and they become views of its buffer.

    Args:
        owners: the parameters, wherever they are; those on the meta device are read if they know from where, and
            start at zero else.
        home: gives the place of a piece of so many bytes, None for one that stays on the device.
        adopt: takes each piece into the residency.
    """
    sizes = chunk_sizes(layout)
    buffer = make_buffer((layout.numel,), layout.dtype, device)
    values = _values(layout, owners)
    hole = torch.full(
        (), torch.nan if layout.dtype.is_floating_point else 0, dtype=layout.dtype, device=device
    )
    views = []
    for slot, owner in zip(layout.slots, owners, strict=True):
        view = _view(buffer.flat, slot)
        absent = hole.expand(slot.shape)
        become(owner, view, absent)
        views.append(View(owner, view, absent))
    place = home(Piece(layout.index, "parameters"), sizes.parameters)
    if values is not None:
        (buffer.flat.copy_ if place is None else place.fill)(values)
    parameters = Resident(Piece(layout.index, "parameters"), buffer, place, views)
    chunk = Chunk(layout, tuple(owners), adopt(parameters))
    if layout.trainable:
        _add_state(chunk, sizes, device, hole, home, adopt)
    return chunk


def _values(layout: Layout, owners: Sequence[nn.Parameter]) -> torch.Tensor | None:
    """What a chunk begins with; None where nobody knows, since homes and buffers begin at zero."""
    if all(owner.is_meta and not is_deferred(owner) for owner in owners):
        return None
    values = torch.zeros(layout.numel, dtype=layout.dtype)
    for slot, owner in zip(layout.slots, owners, strict=True):
        if not owner.is_meta:
            _view(values, slot).copy_(owner.detach())
        else:
            read_deferred(owner, _view(values, slot))
    return values


def _add_state(
    chunk: Chunk, sizes: ChunkSizes, device: torch.device, hole: torch.Tensor, home, adopt
) -> None:
    layout = chunk.layout
    buffer = make_buffer((layout.numel,), layout.dtype, device)
    views = [
        View(_view(buffer.flat, slot).detach(), _view(buffer.flat, slot), hole.expand(slot.shape))
        for slot in layout.slots
    ]
    chunk.stored_gradients = tuple(view.tensor for view in views)
    key = Piece(layout.index, "gradients")
    chunk.gradients = adopt(
        Resident(key, buffer, home(key, sizes.gradients), views, lambda: chunk.has_gradients)
    )
    key, dtype = Piece(layout.index, "optimizer"), state_dtype(layout.dtype)
    buffer = make_buffer((state_rows(layout.dtype), layout.numel), dtype, device)
    chunk.optimizer = adopt(Resident(key, buffer, home(key, sizes.optimizer)))


def become(parameter: nn.Parameter, view: torch.Tensor, absent: torch.Tensor) -> None:
    """Make a parameter show a view, whatever device it was on; it stays the object that it is.

    Its version is its own: that of a view counts what is written to the whole buffer, and autograd would refuse weights
    whose chunk was away in between.
    """
    if parameter.device.type != view.device.type:
        attributes = dict(vars(parameter))
        torch.utils.swap_tensors(parameter, nn.Parameter(absent, parameter.requires_grad))
        vars(parameter).update(
            {name: value for name, value in attributes.items() if name not in vars(parameter)}
        )
    parameter.data = view


def _view(flat: torch.Tensor, slot: Slot) -> torch.Tensor:
    return flat[slot.offset : slot.offset + slot.numel].view(slot.shape)
