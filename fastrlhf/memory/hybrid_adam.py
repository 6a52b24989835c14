"""AdamW that updates each chunk where it lies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import torch

from fastrlhf.device.observe import host_waits
from fastrlhf.kernels import adamw
from fastrlhf.memory.chunk import Chunk
from fastrlhf.memory.layout import Slot
from fastrlhf.memory.manager import MemoryManager
from fastrlhf.memory.residency import Use
from fastrlhf.memory.state_dicts import host_values
from fastrlhf.memory.tensor_files import Stored, Value, read_stored

# The rows of a chunk's optimizer state; the last one for bfloat16 parameters only.
MOMENTS = ("exp_avg", "exp_avg_sq", "master")


class Segment(NamedTuple):
    """Neighbours in a chunk that are updated alike: elements `start` to `stop`."""

    start: int
    stop: int
    step: int
    group: dict[str, Any]


class HybridAdam(torch.optim.Optimizer):
    """AdamW (or Adam without weight decay) over the chunks of a `MemoryManager`.

    A chunk whose parameters stay on the device is updated there, and so are all where the device is the CPU; one in the
    host tier by the host's kernel in place, one on the disk through a buffer. bfloat16 parameters have float32 masters.

    Its interface is that of `torch.optim.AdamW`; gradients are to be clipped by its own `clip_grad_norm_`, since
    between backward and step they are not on the device.

    Args:
        manager: holds the chunks.
        param_groups: with params, lr, betas, eps and weight_decay. The dictionaries are used as they are, so that a
            scheduler that changes them goes on to.
    """

    def __init__(self, manager: MemoryManager, param_groups: list[dict[str, Any]]):
        self.manager = manager
        super().__init__([dict(group) for group in param_groups], {"lr": 1e-3})
        self.param_groups[:] = param_groups
        self._group_of = {parameter: group for group in param_groups for parameter in group["params"]}
        self._steps = dict.fromkeys(self._group_of, 0)
        self._clip: tuple[float, torch.Tensor] | None = None

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Only while it is made.

        Raises:
            ValueError: afterwards, when the chunks are laid out.
        """
        if hasattr(self, "_group_of"):
            raise ValueError(
                "parameters cannot be added to an offloaded optimizer: add them before fastrlhf.offload"
            )
        super().add_param_group(param_group)

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks that are trained."""
        return [chunk for chunk in self.manager.chunks if chunk.optimizer is not None]

    # Gradients

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget all gradients; their memory is given back.

        Raises:
            ValueError: `set_to_none` is False.
        """
        if not set_to_none:
            raise ValueError(
                "set_to_none=False is not supported: gradients are given back, not filled with zeros"
            )
        for parameter in self._group_of:
            parameter.grad = None
        self.manager.residency.discard(chunk.gradients for chunk in self.chunks)
        self._clip = None

    @torch.no_grad()
    def clip_grad_norm_(self, max_norm: float) -> torch.Tensor:
        """The norm of all gradients, as `torch.nn.utils.clip_grad_norm_` has it; the next step clips them to it.

        Each backward has taken the norms of the gradients it made, so nothing is moved. A step after a norm that is not
        finite changes nothing.
        """
        norms = {
            id(owner): chunk.norms[slot]
            for chunk in self.chunks
            for index, (owner, slot) in enumerate(zip(chunk.owners, chunk.layout.slots, strict=True))
            if chunk.has_gradient(index)
        }
        ordered = [norms[id(parameter)] for parameter in self._group_of if id(parameter) in norms]
        norm = torch.linalg.vector_norm(torch.stack(ordered)) if ordered else torch.tensor(0.0)
        self._clip = float(max_norm) if max_norm > 0 else math.inf, norm
        return norm

    # The update

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        max_norm, norm = self._clip or (math.inf, torch.zeros(()))
        with host_waits("whether the update is finite"):
            on_host = norm.cpu()
        if on_host.isfinite():
            bound = None if max_norm == math.inf else max_norm
            for chunk in self.chunks:
                if segments := list(self._segments(chunk)):
                    self._update(chunk, segments, bound, norm, on_host)
        self.manager.residency.end_step()
        return loss

    def _segments(self, chunk: Chunk) -> Iterator[Segment]:
        """Runs of parameters with gradients, equal step and one group; counts the step."""
        current: Segment | None = None
        for index, (owner, slot) in enumerate(zip(chunk.owners, chunk.layout.slots, strict=True)):
            if not chunk.has_gradient(index):
                continue
            self._steps[owner] += 1
            stop, step, group = slot.offset + slot.numel, self._steps[owner], self._group_of[owner]
            if current and current.step == step and current.group is group and chunk.has_gradient(index - 1):
                current = current._replace(stop=stop)
                continue
            if current:
                yield current
            current = Segment(slot.offset, stop, step, group)
        if current:
            yield current

    def _update(
        self,
        chunk: Chunk,
        segments: list[Segment],
        max_norm: float | None,
        norm: torch.Tensor,
        norm_on_host: torch.Tensor,
    ) -> None:
        pieces = (chunk.parameters, chunk.gradients, chunk.optimizer)
        if chunk.parameters.home is None or self.manager.updates_on_device:
            uses = [
                Use(chunk.parameters, writes=True),
                Use(chunk.gradients),
                Use(chunk.optimizer, writes=True),
            ]
            with self.manager.residency.using(uses):
                flats = (piece.flat for piece in pieces)
                _adamw(chunk, *flats, segments, max_norm, norm)
            return
        with ExitStack() as stack:
            values = [
                stack.enter_context(piece.home.on_host(piece.flat, writes=piece is not chunk.gradients))
                for piece in pieces
            ]
            _adamw(chunk, *values, segments, max_norm, norm_on_host)
        self.manager.residency.discard([chunk.parameters])  # what the device has is older now

    # State

    def state_dict(self, moments: bool = True) -> dict[str, Any]:
        """As `torch.optim.AdamW`'s: step, exp_avg and exp_avg_sq of each parameter (and master, for bfloat16).

        What is in the host tier is given as it lies there; what is on the disk is read into memory.

        Args:
            moments: False leaves all but the steps to `state_values`.
        """
        self.state.clear()
        for chunk in self.chunks:
            values = None
            for owner, slot in zip(chunk.owners, chunk.layout.slots, strict=True):
                if not self._steps[owner]:
                    continue
                self.state[owner] = {"step": torch.tensor(float(self._steps[owner]))}
                if not moments:
                    continue
                if values is None:
                    values = host_values(chunk.optimizer, self.manager.residency)
                    values = values.view(chunk.optimizer.flat.shape)
                part = [row[slot.offset : slot.offset + slot.numel].view(slot.shape) for row in values]
                self.state[owner] |= dict(zip(MOMENTS, part, strict=False))
        try:
            return super().state_dict()
        finally:
            self.state.clear()

    def state_values(self) -> dict[str, Value]:
        """What `state_dict(moments=False)` leaves out, by number and name (`3.exp_avg`), each to be read by itself."""
        numbers = {parameter: number for number, parameter in enumerate(self._group_of)}
        found = {}
        for chunk in self.chunks:
            for owner, slot in zip(chunk.owners, chunk.layout.slots, strict=True):
                for row, name in zip(range(len(chunk.optimizer.flat)), MOMENTS, strict=False):
                    if self._steps[owner]:
                        read = partial(self._moment, chunk, row, slot)
                        dtype = chunk.optimizer.flat.dtype
                        found[f"{numbers[owner]}.{name}"] = Value(dtype, slot.shape, read)
        return found

    def _moment(self, chunk: Chunk, row: int, slot: Slot) -> torch.Tensor:
        start = row * chunk.layout.numel + slot.offset
        return host_values(chunk.optimizer, self.manager.residency, start, slot.numel).view(slot.shape)

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the state of `torch.optim.AdamW` or of this class, whose tensors may be in files still (`Stored`).

        Raises:
            ValueError: it is of other groups or parameters.
        """
        groups, saved = self.param_groups, state_dict["param_groups"]
        if [len(group["params"]) for group in groups] != [len(group["params"]) for group in saved]:
            raise ValueError("the loaded state dict has other groups of parameters")
        for group, loaded in zip(groups, saved, strict=True):
            group.update({name: value for name, value in loaded.items() if name != "params"})
        numbers = [number for group in saved for number in group["params"]]
        self.load_states(
            {
                parameter: state_dict["state"].get(number, {})
                for number, parameter in zip(numbers, self._group_of, strict=True)
            }
        )

    @torch.no_grad()
    def load_states(self, states: dict[torch.Tensor, dict[str, Any]]) -> None:
        """Take over steps and moments (tensors, or `Stored`) by parameter; one without any starts anew."""
        for chunk in self.chunks:
            piece = chunk.optimizer
            values = torch.zeros(piece.flat.shape, dtype=piece.flat.dtype)
            for owner, slot in zip(chunk.owners, chunk.layout.slots, strict=True):
                state = states.get(owner, {})
                self._steps[owner] = int(state.get("step", 0))
                for row, name in zip(values, MOMENTS, strict=False):
                    target = row[slot.offset : slot.offset + slot.numel].view(slot.shape)
                    if isinstance(state.get(name), Stored):
                        read_stored(state[name], target)
                    elif name in state:
                        target.copy_(state[name])
            self.manager.residency.discard([piece])
            (piece.flat.copy_ if piece.home is None else piece.home.fill)(values)
            chunk.changed = True


def _adamw(
    chunk: Chunk,
    parameters: torch.Tensor,
    gradients: torch.Tensor,
    state: torch.Tensor,
    segments: list[Segment],
    max_norm: float | None,
    norm: torch.Tensor,
) -> None:
    """One step on the flat buffers of a chunk, all in one place."""
    exp_avg, exp_avg_sq, *masters = state
    if masters and chunk.changed:
        # a master whose rounding is the parameter stays; others wrote the rest
        master = masters[0]
        master.copy_(torch.where(master.to(parameters.dtype) == parameters, master, parameters.float()))
    chunk.changed = False
    for start, stop, step, group in segments:
        part = slice(start, stop)
        adamw(
            masters[0][part] if masters else parameters[part],
            gradients[part],
            exp_avg[part],
            exp_avg_sq[part],
            lr=group["lr"],
            step=step,
            betas=group["betas"],
            eps=group["eps"],
            weight_decay=group["weight_decay"],
            bfloat16_copy=parameters[part] if masters else None,
            grad_norm=None if max_norm is None else norm,
            max_norm=max_norm,
        )
