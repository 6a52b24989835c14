"""A PEFT policy written as a plain Hugging Face model, its adapters merged, one layer in memory at a time.

The model itself keeps every bit: merging in place and unmerging changes the last bits of the base, and a resumed run
must have the same. So transformers writes the base as it is, and the layers that an adapter changes are then written
over in the files, from a merged copy of each. (Copies of all of them at once took 0.26 GB of the demo's peak.)
"""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from fastrlhf.models.backbone import base_model

# what PEFT puts around a module trained whole
_WRAPPER = re.compile(r"\.modules_to_save\.[^.]+|\.original_module")


class _Place(NamedTuple):
    path: Path
    offset: int
    nbytes: int


@torch.no_grad()
def save_merged(model: nn.Module, folder: Path, shard_size: str) -> None:
    """Write the base of a PEFT model with its active adapters merged in, as `save_pretrained` does."""
    base = base_model(model)
    state = _base_state(base)
    if not _is_shared(state, base):
        base.save_pretrained(folder, state_dict=state, max_shard_size=shard_size)
        places = _places(folder)
        merged = ((places.get(name), tensor) for name, tensor in _merged(base))
        if all(_write_over(place, tensor) for place, tensor in merged):
            return
    # transformers writes a layer under another name, or once for two names: all of them then, in memory
    whole = _base_state(base) | dict(
        _merged(base)
    )  # made anew: transformers takes out of `state` what it has written
    base.save_pretrained(folder, state_dict=whole, max_shard_size=shard_size)


def tuned_layers(base: nn.Module) -> dict[str, nn.Module]:
    """The layers that have adapters, by name."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return {name: module for name, module in base.named_modules() if isinstance(module, BaseTunerLayer)}


def name_without_wrapper(name: str) -> str:
    """A tensor's name in the model without adapters."""
    return _WRAPPER.sub("", name)


def _base_state(base: nn.Module) -> dict[str, torch.Tensor]:
    """The base's state dict without the adapters, under the names that it has without them."""
    tuned = tuned_layers(base)
    state = {
        name_without_wrapper(name): tensor
        for name, tensor in base.state_dict().items()
        if not any(name.startswith(f"{layer}.") for layer in tuned)
    }
    for name, layer in tuned.items():
        state |= {f"{name}.{key}": tensor for key, tensor in layer.get_base_layer().state_dict().items()}
    return state


def _merged(base: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What the adapters change, by name, one layer after the other."""
    for name, layer in tuned_layers(base).items():
        copied = copy.deepcopy(layer)
        copied.merge()
        for key, tensor in copied.get_base_layer().state_dict().items():
            yield f"{name}.{key}", tensor


def _is_shared(state: dict[str, torch.Tensor], base: nn.Module) -> bool:
    """Whether a layer that an adapter changes has its memory under two names, which transformers writes once."""
    holders = Counter(tensor.data_ptr() for tensor in state.values())
    layers = tuple(f"{name}." for name in tuned_layers(base))
    return any(holders[tensor.data_ptr()] > 1 for name, tensor in state.items() if name.startswith(layers))


def _places(folder: Path) -> dict[str, _Place]:
    """Where each tensor's bytes lie in the safetensors files of a folder.

    A file begins with the length of its header (8 bytes, little-endian) and the header, JSON with the offsets of each
    tensor's bytes after it.
    """
    found = {}
    for path in folder.glob("model*.safetensors"):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        for name, entry in header.items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = _Place(path, 8 + length + begin, end - begin)
    return found


def _write_over(place: _Place | None, tensor: torch.Tensor) -> bool:
    """Put the tensor's bytes in place; False where they do not fit it."""
    if place is None or place.nbytes != tensor.nbytes:
        return False
    with place.path.open("r+b") as file:
        file.seek(place.offset)
        file.write(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return True
