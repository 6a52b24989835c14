"""`state_dict`, `load_state_dict` and copies of modules whose parameters are elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import __future__ as future
from torch import nn

from fastrlhf.memory.chunk import Chunk
from fastrlhf.memory.layout import Slot
from fastrlhf.memory.residency import Residency, Resident, Use

# Gives a parameter's chunk and its place in it, or None.
Find = Callable[[nn.Parameter], tuple[Chunk, Slot] | None]


def attach_state_dicts(module: nn.Module, find: Find, residency: Residency) -> None:
    """Have the `state_dict` of a module give its own parameters' values, and its `load_state_dict` write them.

    What is in the host tier is given as it lies there (no copy is made, and it changes with the model, as in any
    `state_dict`); what is on the disk is read into memory.
    """
    places = {
        name: place
        for name, parameter in module.named_parameters(recurse=False)
        if (place := find(parameter))
    }
    if not places:
        return
    chunks = {id(chunk): chunk for chunk, _ in places.values()}.values()
    loading: list[tuple[list[Use], bool]] = []

    def save(saved: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        if saved is not module:
            return  # a copy of it, which has values of its own
        for name, (chunk, slot) in places.items():
            state[prefix + name] = slot_values(chunk, slot, residency)

    def before_load(loaded: nn.Module, *_: Any) -> None:
        uses = []
        if loaded is module:
            for chunk in chunks:
                chunk.changed = True
            uses = [Use(chunk.parameters, writes=True) for chunk in chunks]
        residency.acquire(uses)
        loading.append((uses, future.get_swap_module_params_on_conversion()))
        future.set_swap_module_params_on_conversion(False)  # values are to be copied into the chunk

    def after_load(loaded: nn.Module, incompatible: Any) -> None:
        uses, swaps = loading.pop()
        future.set_swap_module_params_on_conversion(swaps)
        residency.release(uses)

    module.register_state_dict_post_hook(save)
    module.register_load_state_dict_pre_hook(before_load)
    module.register_load_state_dict_post_hook(after_load)


def attach_copy(parameter: nn.Parameter, chunk: Chunk, slot: Slot, residency: Residency) -> None:
    """Have `copy.deepcopy` give a parameter of its own, on the device, with the values."""

    def copy(memo: dict[int, Any]) -> nn.Parameter:
        if id(parameter) not in memo:
            values = slot_values(chunk, slot, residency).detach().to(chunk.parameters.flat.device, copy=True)
            memo[id(parameter)] = nn.Parameter(values, parameter.requires_grad)
        return memo[id(parameter)]

    parameter.__deepcopy__ = copy


@torch.no_grad()
def slot_values(chunk: Chunk, slot: Slot, residency: Residency) -> torch.Tensor:
    """A parameter's values as a tensor that stays where it is when the chunk moves on."""
    return host_values(chunk.parameters, residency, slot.offset, slot.numel).view(slot.shape)


@torch.no_grad()
def host_values(
    piece: Resident, residency: Residency, start: int = 0, numel: int | None = None
) -> torch.Tensor:
    """Elements of a piece, flat, as a tensor that stays where it is when the piece moves on."""
    flat = piece.flat.view(-1)
    numel = flat.numel() if numel is None else numel
    if piece.home is None:
        return flat[start : start + numel]
    if piece.dirty:
        residency.settle()
    return piece.home.values(piece.flat, start, numel)
