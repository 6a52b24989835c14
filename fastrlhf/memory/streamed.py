"""A model's values one tensor at a time: for checkpoints of what is not, or need not be, in memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import nn

from fastrlhf.memory.tensor_files import Stored, Value, read_stored
from fastrlhf.memory.using import manager_of


def named_tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and buffers of a `state_dict` by name, tied ones under each of theirs; none is read."""
    return {
        f"{prefix}{name}": tensor
        for path, module in model.named_modules(remove_duplicate=False)
        for prefix in [f"{path}." if path else ""]
        for name, tensor in own_tensors(module)
    }


def own_tensors(module: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What a module itself adds to a `state_dict`."""
    for name, tensor in (*module._parameters.items(), *module._buffers.items()):
        if tensor is not None and name not in module._non_persistent_buffers_set:
            yield name, tensor


def value_of(module: nn.Module, tensor: torch.Tensor) -> Value:
    """One of a module's own tensors, to be read from wherever it lies then."""
    manager = manager_of(module)
    managed = manager is not None and isinstance(tensor, nn.Parameter)
    read = (lambda: manager.values(tensor)) if managed else (lambda: tensor)
    return Value(tensor.dtype, tuple(tensor.shape), read)


def model_values(model: nn.Module) -> dict[str, Value]:
    """The values of a `state_dict`, tied ones under their first name."""
    found: dict[str, Value] = {}
    seen: set[int] = set()
    for path, module in model.named_modules():
        for name, tensor in own_tensors(module):
            if id(tensor) not in seen:
                seen.add(id(tensor))
                found[f"{path}.{name}" if path else name] = value_of(module, tensor)
    return found


def load_values(model: nn.Module, stored: Mapping[str, Stored]) -> None:
    """Read stored values into a model, in place and wherever they lie; names that the model has not are left out.

    Raises:
        ValueError: shapes differ, or a file has been cut short.
    """
    for path, module in model.named_modules(remove_duplicate=False):
        manager = manager_of(module)
        for name, tensor in own_tensors(module):
            place = stored.get(f"{path}.{name}" if path else name)
            if place is None:
                continue
            if manager is not None and isinstance(tensor, nn.Parameter):
                manager.write(tensor, lambda target, place=place: read_stored(place, target))
            else:
                read_stored(place, tensor.detach())
