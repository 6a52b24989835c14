"""A policy whose values lie elsewhere, or in fewer bits, written as a plain Hugging Face model tensor by tensor."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import nn

from fastrlhf.memory.streamed import model_values, own_tensors, value_of
from fastrlhf.memory.tensor_files import Value, write_shards
from fastrlhf.memory.using import manager_of
from fastrlhf.models.backbone import base_model
from fastrlhf.models.quantized import QuantizedLinear
from fastrlhf.ppo.merged import name_without_wrapper, tuned_layers


def streams(model: nn.Module) -> bool:
    """Whether a policy is to be written by `save_streamed`: its memory is managed, or its base quantised."""
    base = base_model(model)
    return manager_of(base) is not None or any(isinstance(each, QuantizedLinear) for each in base.modules())


@torch.no_grad()
def save_streamed(model: nn.Module, folder: Path, shard_bytes: int) -> None:
    """Write a policy as `save_pretrained` does, adapters merged and quantised layers in their own dtype.

    No more than one layer is in memory at a time.
    """
    base = base_model(model)
    base.save_pretrained(folder, state_dict={})  # the configurations
    for path in folder.glob("model*.safetensors*"):
        path.unlink()
    write_shards(folder, policy_values(base), shard_bytes)


def policy_values(base: nn.Module) -> dict[str, Value]:
    """The values of the plain model that a policy stands for, by name; tied ones under their first."""
    tuned = tuned_layers(base)
    found: dict[str, Value] = {}
    seen: set[int] = set()
    inside = tuple(f"{path}." for path in tuned)
    for path, module in base.named_modules():
        if path in tuned:
            found |= _linear_values(path, module.get_base_layer(), lambda layer=module: _merged(layer))
        elif path.startswith(inside):
            continue
        elif isinstance(module, QuantizedLinear):
            found |= _linear_values(path, module, module.dequantized)
        else:
            for name, tensor in own_tensors(module):
                if id(tensor) not in seen:
                    seen.add(id(tensor))
                    full = f"{path}.{name}" if path else name
                    found[name_without_wrapper(full)] = value_of(module, tensor)
    return found


def adapter_state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a PEFT model's adapters and of modules trained whole, without its base."""
    adapters = set(model.peft_config)
    return {
        name: value.read().detach()
        for name, value in model_values(model).items()
        if adapters & set(name.split("."))
    }


def _linear_values(path: str, layer: nn.Module, make) -> dict[str, Value]:
    """Weight and bias of a layer, from a plain layer made when they are needed."""
    dtype = layer.dtype if isinstance(layer, QuantizedLinear) else layer.weight.dtype
    shape = layer.quantized.shape if isinstance(layer, QuantizedLinear) else tuple(layer.weight.shape)
    found = {f"{path}.weight": Value(dtype, shape, lambda: make().weight)}
    if getattr(layer, "bias", None) is not None:
        bias = layer.bias
        found[f"{path}.bias"] = Value(bias.dtype, tuple(bias.shape), lambda: make().bias)
    return found


def _merged(layer: nn.Module) -> nn.Module:
    """A copy of a layer's base with its active adapters merged in."""
    copied = copy.deepcopy(layer)
    if isinstance(copied.get_base_layer(), QuantizedLinear):
        copied.base_layer = copied.get_base_layer().dequantized()
    copied.merge()
    return copied.get_base_layer()
