"""The modules that are brought to the device as a whole, one after the other: blocks, and what stands beside them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Unit:
    """A module whose parameters are needed together.

    Attributes:
        name: its name in the model.
        module: whoever runs it needs `parameters` on the device.
        parameters: names and parameters, weight matrices first (so that query, key and value lie side by side, as do
            gate and up, and their biases), then other matrices, such as scales, then vectors, each in module order.
        inside: the names of units that run within it: it holds parameters of its own and stays while they come and go.
    """

    name: str
    module: nn.Module
    parameters: tuple[tuple[str, nn.Parameter], ...]
    inside: frozenset[str] = frozenset()


def find_units(model: nn.Module, name: str = "") -> list[Unit]:
    """The units of a model (called `name`) in module order; each parameter is in one, a tied one in each that has it.

    A unit is a block (a class that a Hugging Face model names in `_no_split_modules`, else an element of a ModuleList
    or Sequential), or a module outside of blocks: a child without containers of its own. A module around units that
    has parameters itself is a unit for these.
    """
    whole = {
        name for module in model.modules() for name in (getattr(module, "_no_split_modules", None) or ())
    }
    found: list[Unit] = []
    _collect(model, name, whole, found, set(), root=True)
    return found


def around(units: Iterable[Unit], models: Iterable[nn.Module]) -> list[nn.Module]:
    """The modules of the models that run units and are in none: what a layer is given is saved in their forward."""
    blocks = {id(unit.module) for unit in units if not unit.inside}
    within = {id(part) for unit in units if not unit.inside for part in unit.module.modules()}
    modules = {
        id(module): module for model in models for module in model.modules() if id(module) not in within
    }
    return [module for module in modules.values() if any(id(part) in blocks for part in module.modules())]


def _collect(
    module: nn.Module, name: str, whole: set[str], found: list[Unit], seen: set[int], root: bool = False
) -> None:
    if id(module) in seen:
        return
    seen.add(id(module))
    children = [(child_name, child) for child_name, child in module.named_children()]
    block = type(module).__name__ in whole or not (_has_container(module) or (root and children))
    if block:
        parameters = [(_join(name, each), value) for each, value in module.named_parameters()]
        if parameters:
            found.append(Unit(name, module, _ordered(parameters)))
        return
    place = len(found)
    for child_name, child in children:
        _collect(child, _join(name, child_name), whole, found, seen)
    own = [(_join(name, each), value) for each, value in module.named_parameters(recurse=False)]
    if own:
        inside = frozenset(unit.name for unit in found[place:])
        found.insert(place, Unit(name, module, _ordered(own), inside))


def _has_container(module: nn.Module) -> bool:
    """Whether blocks are inside (not for a dictionary of modules, such as PEFT's adapters)."""
    return any(
        isinstance(each, (nn.ModuleList, nn.Sequential)) and any(True for _ in each.parameters())
        for each in module.modules()
    )


def _ordered(parameters: list[tuple[str, nn.Parameter]]) -> tuple[tuple[str, nn.Parameter], ...]:
    def order(named: tuple[str, nn.Parameter]) -> int:
        name, parameter = named
        return 2 if parameter.dim() < 2 else int(name.rpartition(".")[2] != "weight")

    return tuple(sorted(parameters, key=order))


def _join(prefix: str, name: str) -> str:
    return f"{prefix}.{name}" if prefix else name
