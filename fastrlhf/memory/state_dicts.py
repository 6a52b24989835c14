"""`state_dict` and `load_state_dict` of a model whose parameters are elsewhere, one unit at a time."""

from __future__ import annotations

from typing import Any

import torch
from torch import __future__ as future
from torch import nn

from fastrlhf.memory.hooks import Needs
from fastrlhf.memory.residency import Residency, Resident, Use


def attach_state_dicts(module: nn.Module, needs: Needs, residency: Residency) -> None:
    """Have a unit's `state_dict` give the values, and its `load_state_dict` write them.

    What is in the host tier is given as it lies there (no copy is made, and it changes with the model, as in any
    `state_dict`); what is on the disk is read into memory.
    """
    slots = {
        id(owner): (chunk, slot)
        for chunk in needs.chunks
        for owner, slot in zip(chunk.owners, chunk.layout.slots, strict=True)
    }
    named = module.named_parameters(remove_duplicate=False)
    places = {name: slots[id(parameter)] for name, parameter in named if id(parameter) in slots}
    loading: list[tuple[list[Use], bool]] = []

    def save(module: nn.Module, state: dict[str, Any], prefix: str, metadata: Any) -> None:
        values = {id(chunk): host_values(chunk.parameters, residency) for chunk in needs.chunks}
        for name, (chunk, slot) in places.items():
            part = values[id(chunk)][slot.offset : slot.offset + slot.numel]
            state[prefix + name] = part.view(slot.shape)

    def before_load(module: nn.Module, *_: Any) -> None:
        for chunk in needs.chunks:
            chunk.changed = True
        uses = needs.forward(writes=True)
        residency.acquire(uses)
        loading.append((uses, future.get_swap_module_params_on_conversion()))
        future.set_swap_module_params_on_conversion(False)  # values are to be copied into the chunk

    def after_load(module: nn.Module, incompatible: Any) -> None:
        uses, swaps = loading.pop()
        future.set_swap_module_params_on_conversion(swaps)
        residency.release(uses)

    module.register_state_dict_post_hook(save)
    module.register_load_state_dict_pre_hook(before_load)
    module.register_load_state_dict_post_hook(after_load)


@torch.no_grad()
def host_values(piece: Resident, residency: Residency) -> torch.Tensor:
    """A piece as a tensor that stays where it is when the piece moves on."""
    if piece.home is None:
        return piece.flat
    if piece.dirty:
        residency.settle()
    return piece.home.values(piece.flat)
