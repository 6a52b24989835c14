"""The frozen bottom of a model: the layers under the first one that is trained, run once for all that share them.

Known for the families of `accelerate`: their backbones are embeddings, a list of layers and a final norm. The split
puts part of the list in the place of the whole for one forward, so that masks, positions and gradient checkpointing
stay transformers'.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import nn

from fastrlhf.models.backbone import (
    backbone,
    base_model,
    has_backbone,
    is_accelerated,
    packed_forward,
    packed_hidden_states,
)
from fastrlhf.models.parts import GemmaNorm, LayerNorm, LlamaNorm


class Entering(NamedTuple):
    """Hidden states `[1, total, D]` of packed tokens, as they enter layer `depth`."""

    depth: int
    states: torch.Tensor


class Layers(NamedTuple):
    """Where a backbone has its layers and its final norm: the names of its children."""

    layers: str
    norm: str


def layers_of(model: nn.Module) -> Layers | None:
    """The names in an accelerated model's backbone; None where it is not made of embeddings, layers and a norm."""
    if not has_backbone(model) or not is_accelerated(model):
        return None
    count = base_model(model).config.get_text_config().num_hidden_layers
    children = dict(backbone(model).named_children())
    lists = [n for n, child in children.items() if isinstance(child, nn.ModuleList) and len(child) == count]
    norms = [n for n, child in children.items() if isinstance(child, (LlamaNorm, GemmaNorm, LayerNorm))]
    return Layers(lists[0], norms[0]) if len(lists) == len(norms) == 1 else None


def frozen_depth(model: nn.Module) -> int:
    """How many layers from the bottom neither train nor hold an adapter (which a reference would run without).

    Zero where the embeddings train, or where the model is not known to split.
    """
    names = layers_of(model)
    if names is None:
        return 0
    children = dict(backbone(model).named_children())
    layers = children.pop(names.layers)
    del children[names.norm]
    if not all(map(_is_frozen, children.values())):
        return 0
    return next((depth for depth, layer in enumerate(layers) if not _is_frozen(layer)), len(layers))


def freeze_below(model: nn.Module, trainable_layers: int) -> None:
    """Leave nothing to train in a model's backbone and language model head but the top layers, and their adapters.

    Raises:
        ValueError: the model has fewer layers, is not known to split, or has adapters further down.
    """
    depth = depth_below(model, trainable_layers)
    layers = getattr(backbone(model), layers_of(model).layers)
    kept = {id(parameter) for layer in layers[depth:] for parameter in layer.parameters()}
    head = base_model(model).get_output_embeddings()
    for module in (backbone(model), *([] if head is None else [head])):
        for parameter in module.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(False)
    if frozen_depth(model) < depth:
        raise ValueError(
            f"trainable_layers is {trainable_layers}, and the model has adapters below its top {trainable_layers} "
            "layers: put them on those alone (layers_to_transform), or pass peft_config and a model without adapters"
        )


def depth_below(model: nn.Module, trainable_layers: int) -> int:
    """How many layers lie below the top `trainable_layers`.

    Raises:
        ValueError: the model has fewer, or is not known to split.
    """
    names = layers_of(model)
    if names is None:
        raise ValueError(
            f"trainable_layers is {trainable_layers}, which needs a family that accelerate knows, and accelerate=True; "
            f"{type(base_model(model)).__name__} is not split into layers here"
        )
    count = len(getattr(backbone(model), names.layers))
    if trainable_layers > count:
        raise ValueError(f"trainable_layers is {trainable_layers}, and the model has {count} layers")
    return count - trainable_layers


def bottom_pattern(model: nn.Module, depth: int) -> str | None:
    """A pattern of the names of modules in the bottom `depth` layers, as PEFT's `exclude_modules` takes it."""
    numbers = "|".join(map(str, range(depth)))
    return rf"(?:.*\.)?{re.escape(layers_of(model).layers)}\.(?:{numbers})\..*" if depth else None


@torch.no_grad()
def bottom_states(
    model: nn.Module, depth: int, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """`[1, total, D]`: the hidden states of the real tokens of all rows, as they enter layer `depth`."""
    names = layers_of(model)
    layers = getattr(backbone(model), names.layers)
    with _replaced(backbone(model), {names.layers: layers[:depth], names.norm: nn.Identity()}):
        return packed_forward(model, input_ids, attention_mask)


def top_hidden_states(
    model: nn.Module, entering: Entering, input_ids: torch.Tensor, attention_mask: torch.Tensor
) -> torch.Tensor:
    """As `packed_hidden_states`, from the states that enter a layer."""
    names = layers_of(model)
    layers = getattr(backbone(model), names.layers)
    top = nn.ModuleList([_Entry(entering.states), *layers[entering.depth :]])
    with _replaced(backbone(model), {names.layers: top}):
        return packed_hidden_states(model, input_ids, attention_mask)


@torch.no_grad()
def splits(model: nn.Module, depth: int) -> bool:
    """Whether bottom and top together compute what the whole model does, tried on two rows; a notice if not."""
    device = next(model.parameters()).device
    mask = torch.tensor([[False, True, True], [True, True, True]], device=device)
    ids = torch.tensor([[0, 0, 1], [0, 1, 0]], device=device)
    whole = packed_hidden_states(model, ids, mask)
    entering = Entering(depth, bottom_states(model, depth, ids, mask))
    found = top_hidden_states(model, entering, ids, mask)
    if torch.allclose(found, whole, rtol=1e-2, atol=1e-3 * float(whole.abs().max())):
        return True
    warnings.warn(
        f"{type(base_model(model)).__name__} does not split into its frozen layers and the others: all of them run "
        "in every forward",
        stacklevel=2,
    )
    return False


@torch.no_grad()
def share_bottom(model: nn.Module, other: nn.Module, depth: int) -> bool:
    """Let `other` hold the bottom of `model` instead of its own, if the two are equal. Returns whether they are."""
    if depth == 0 or layers_of(model) != layers_of(other):
        return False
    ours, theirs = _bottom(model, depth), _bottom(other, depth)
    equal = ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor, theirs[name])
        for name, tensor in ours.items()
    )
    if equal:
        for name, tensor in ours.items():
            theirs[name].data = tensor.data
    return equal


class _Entry(nn.Module):
    """A first layer that gives what enters the second."""

    def __init__(self, states: torch.Tensor):
        super().__init__()
        self.states = states

    def forward(self, hidden_states, *args, **kwargs):
        return self.states


@contextmanager
def _replaced(module: nn.Module, children: dict[str, nn.Module]) -> Iterator[None]:
    """`module` with other children for the block."""
    before = {name: module._modules[name] for name in children}
    module._modules.update(children)
    try:
        yield
    finally:
        module._modules.update(before)


def _is_frozen(module: nn.Module) -> bool:
    adapted = any(hasattr(part, "get_base_layer") for part in module.modules())
    return not adapted and not any(parameter.requires_grad for parameter in module.parameters())


def _bottom(model: nn.Module, depth: int) -> dict[str, torch.Tensor]:
    """Parameters of the embeddings and of the bottom layers, by name."""
    names = layers_of(model)
    found = {}
    for name, child in backbone(model).named_children():
        if name != names.norm:
            part = child[:depth] if name == names.layers else child
            found |= {f"{name}.{key}": parameter for key, parameter in part.named_parameters()}
    return found
