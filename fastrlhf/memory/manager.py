"""The manager: a model's parameters, gradients and optimizer state in chunks that move between the tiers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import inf
from pathlib import Path

import torch
from torch import nn

from fastrlhf.kernels.packed import limit_packed
from fastrlhf.memory.activations import Activations
from fastrlhf.memory.buffers import return_large_allocations
from fastrlhf.memory.chunk import Chunk, chunk_sizes, make_chunk
from fastrlhf.memory.copies import Copier
from fastrlhf.memory.hooks import ModuleHooks, Needs
from fastrlhf.memory.layout import LARGEST_CHUNK, Wanted, lay_out, search_chunk_bytes
from fastrlhf.memory.meter import Meter, table
from fastrlhf.memory.placement import Capacities, Piece, Placement, plan_homes
from fastrlhf.memory.residency import Residency, Use
from fastrlhf.memory.state_dicts import attach_copy, attach_state_dicts, slot_values
from fastrlhf.memory.tiers import STAGING_BUFFERS, DiskTier, Home, HostHome
from fastrlhf.memory.units import Unit, around, find_units
from fastrlhf.memory.using import put_under


class MemoryManager:
    """Moves the chunks of one or several models between the device and the tiers below it.

    Args:
        models: whose parameters it takes over; in place, they stay what they are for whoever holds them.
        trained: the parameters that an optimizer will update; the others are frozen.
        device: where the models run; capacities: of the tiers (`buffers` is set here).
        directory: where the disk tier has its file.
        placement: which pieces stay, and which leave first.
        prefetch: how many uses ahead pieces are brought.
        chunk_bytes: size of a chunk; None searches it.
        offload_activations: send what a forward keeps for its backward to the host.

    Attributes:
        chunks: all chunks. device_meter, host_meter, disk_meter: the books.
        updates_on_device: whether optimizer state whose home is elsewhere is brought to the device for an update, which
            it is where the device's memory is the host's.

    Raises:
        CapacityError: something has no place; the message says how many bytes are needed.
        TierError: the disk cannot be used.
    """

    def __init__(
        self,
        models: Sequence[nn.Module],
        trained: Sequence[nn.Parameter],
        *,
        device: torch.device,
        capacities: Capacities,
        directory: str | Path | None,
        placement: Placement,
        prefetch: int,
        chunk_bytes: int | None = None,
        offload_activations: bool = False,
    ):
        self.device, self.directory, self.models = device, directory, list(models)
        self.updates_on_device = device.type == "cpu"
        capacities = capacities._replace(buffers=0 if self.updates_on_device else STAGING_BUFFERS)
        self.device_meter = Meter("device", capacities.device)
        self.host_meter, self.disk_meter = Meter("host", capacities.host), Meter("disk", capacities.disk)
        self.residency = Residency(placement, self.device_meter, prefetch)
        self.hooks = ModuleHooks(self.residency)
        self._copier = Copier(device)
        if self.updates_on_device and capacities.device < inf:
            return_large_allocations()
            limit_packed(0)  # copies of the weights, of which there is no room for one
        self._disk: DiskTier | None = None

        names = [f"model {number}" if len(self.models) > 1 else "" for number in range(len(self.models))]
        units = [
            unit for model, name in zip(self.models, names, strict=True) for unit in find_units(model, name)
        ]
        wanted, owners = _parameters(units, trained)
        if chunk_bytes is None:
            chunk_bytes = search_chunk_bytes(wanted, largest=int(min(LARGEST_CHUNK, capacities.device / 16)))
        layouts = lay_out(wanted, chunk_bytes)
        chunk_of = {id(owners[slot.name]): layout.index for layout in layouts for slot in layout.slots}
        sizes = [chunk_sizes(layout) for layout in layouts]
        homes = plan_homes(sizes, placement, capacities, self._working_sets(units, chunk_of, sizes))
        places = {piece: self._home(tier, sizes[piece.chunk].size(piece)) for piece, tier in homes.items()}
        if self._disk is not None:
            self._disk.open()
        self.chunks = [
            make_chunk(
                layout,
                [owners[slot.name] for slot in layout.slots],
                device,
                lambda piece, size: places[piece],
                self.residency.add,
            )
            for layout in layouts
        ]
        self._places = {
            owner: (chunk, slot)
            for chunk in self.chunks
            for owner, slot in zip(chunk.owners, chunk.layout.slots, strict=True)
        }
        for unit in units:
            if chunks := self._chunks(parameter for _, parameter in unit.parameters):
                needs = Needs(unit.name, chunks, unit.inside, isinstance(unit.module, nn.Embedding))
                self.hooks.attach(unit.module, needs)
        if offload_activations:
            activations = Activations(self._copier, self.device_meter, self.host_meter, prefetch)
            for module in around(units, self.models):
                activations.attach(module)
        self._finish(trained)

    # What others use

    def use(self, module: nn.Module, writes: bool = False) -> AbstractContextManager[None]:
        """The parameters of `module` are on the device for the block, for code that takes them without running it.

        Args:
            writes: whether the block changes them.
        """
        chunks = self._chunks(module.parameters())
        if writes:
            for chunk in chunks:
                chunk.changed = True
        return self.hooks.use(Needs(f"use of {type(module).__name__} {id(module)}", chunks), writes)

    def fits(self, module: nn.Module) -> bool:
        """Whether all parameters of `module` can be on the device at once, beside what never leaves it."""
        return self.residency.fits([chunk.parameters for chunk in self._chunks(module.parameters())])

    @contextmanager
    def gradient(self, parameter: nn.Parameter) -> Iterator[torch.Tensor | None]:
        """A parameter's gradient, on the device for the block; None where no backward has reached it."""
        with self.residency.using([Use(self._places[parameter][0].gradients)]):
            yield parameter.grad

    def values(self, parameter: nn.Parameter) -> torch.Tensor:
        """A parameter's values as a tensor that stays where it is: as they lie in memory, else a copy."""
        if parameter not in self._places:
            return parameter.detach()
        return slot_values(*self._places[parameter], self.residency)

    @torch.no_grad()
    def write(self, parameter: nn.Parameter, read: Callable[[torch.Tensor], None]) -> None:
        """Have `read(target)` write a parameter's values into its place."""
        chunk, _ = self._places[parameter]
        chunk.changed = True
        with self.residency.using([Use(chunk.parameters, writes=True)]):
            read(parameter.detach())

    def own_leaf(self, parameter: nn.Parameter) -> torch.Tensor:
        """A leaf that shows `parameter`, and whose gradient is added to the parameter's (see `using.own_leaf`)."""
        if not (parameter.requires_grad and torch.is_grad_enabled() and parameter in self._places):
            return parameter
        chunk, slot = self._places[parameter]
        index = chunk.layout.slots.index(slot)

        def join(leaf: torch.Tensor) -> None:
            gradient, leaf.grad = leaf.grad, None
            if chunk.has_gradient(index):
                with self.residency.using([Use(chunk.gradients, writes=True)]):
                    parameter.grad.add_(gradient)
            else:
                parameter.grad = gradient
            self._keep_gradient(chunk, index, parameter)

        leaf = parameter.detach().requires_grad_()
        leaf.register_post_accumulate_grad_hook(join)
        return leaf

    @property
    def meters(self) -> tuple[Meter, Meter, Meter]:
        """The books of device, host and disk."""
        return self.device_meter, self.host_meter, self.disk_meter

    def report(self) -> str:
        """The books as a table."""
        return table(self.meters)

    def close(self) -> None:
        """Give the disk's space back. The models cannot be used afterwards, unless nothing of them was there."""
        if self._disk is not None:
            self._disk.close()

    # Building

    def _working_sets(self, units, chunk_of, sizes) -> list[tuple[str, set[Piece]]]:
        sets = []
        for unit in units:
            inner = [other for other in units if other.name in unit.inside]
            around = {
                chunk_of[id(p)] for other in units if unit.name in other.inside for _, p in other.parameters
            }
            if inner:
                continue  # counted with each unit within it
            chunks = {chunk_of[id(p)] for _, p in unit.parameters if id(p) in chunk_of} | around
            pieces = {piece for index in chunks for piece in sizes[index].pieces(index)}
            sets.append((f"unit {unit.name!r}", {piece for piece in pieces if piece.role != "optimizer"}))
        if self.updates_on_device:
            sets += [
                (f"the update of chunk {index}", set(size.pieces(index))) for index, size in enumerate(sizes)
            ]
        return sets

    def _home(self, tier: str, size: int) -> Home | None:
        if tier == "device":
            return None
        if tier == "host":
            return HostHome(size, self._copier, self.host_meter)
        if self._disk is None:
            self._disk = DiskTier(self.directory, self._copier, self.disk_meter, self.host_meter)
        return self._disk.home(size)

    def _chunks(self, parameters) -> tuple[Chunk, ...]:
        found = [self._places[parameter][0] for parameter in parameters if parameter in self._places]
        return tuple({id(chunk): chunk for chunk in found}.values())

    def _finish(self, trained: Sequence[nn.Parameter]) -> None:
        for parameter in trained:
            chunk, slot = self._places[parameter]
            index = chunk.layout.slots.index(slot)
            parameter.register_post_accumulate_grad_hook(partial(self._keep_gradient, chunk, index))
        for owner, (chunk, slot) in self._places.items():
            attach_copy(owner, chunk, slot, self.residency)
        for model in self.models:
            for module in model.modules():
                attach_state_dicts(module, self._places.get, self.residency)
                put_under(self, module)
                for name, buffer in module._buffers.items():
                    if buffer is not None and not buffer.is_meta:
                        module._buffers[name] = buffer.to(self.device)

    @torch.no_grad()
    def _keep_gradient(self, chunk: Chunk, index: int, parameter: nn.Parameter) -> None:
        """A parameter's gradient of this backward is complete: it moves into the chunk."""
        stored, slot = chunk.stored_gradients[index], chunk.layout.slots[index]
        fresh = not chunk.has_gradients
        with self.residency.using([Use(chunk.gradients, writes=True, fresh=fresh)]):
            if parameter.grad is not stored:
                stored.copy_(parameter.grad)
                parameter.grad = stored
            chunk.norms[slot] = torch.linalg.vector_norm(
                stored, dtype=torch.promote_types(stored.dtype, torch.float32)
            )


def _parameters(units: list[Unit], trained: Sequence[nn.Parameter]):
    """What is to be laid out, in the units' order and each parameter once, and the parameters by name."""
    optimized = {id(parameter) for parameter in trained}
    wanted: list[Wanted] = []
    owners: dict[str, nn.Parameter] = {}
    seen: set[int] = set()
    for number, unit in enumerate(units):
        for name, parameter in unit.parameters:
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            unique = name if name not in owners else f"{name} ({number})"
            owners[unique] = parameter
            wanted.append(
                Wanted(unique, tuple(parameter.shape), parameter.dtype, id(parameter) in optimized, number)
            )
    return wanted, owners
