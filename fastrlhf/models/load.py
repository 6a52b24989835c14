"""Loads a checkpoint tensor by tensor into the format, and the tier, that it is wanted in."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastrlhf.kernels import QuantizedWeight, quantize
from fastrlhf.memory.deferred import defer, is_deferred, read_deferred
from fastrlhf.memory.tensor_files import Stored, read_stored, stored_tensors
from fastrlhf.models.quantized import PARTS, QuantizedLinear, quantize_linears

FORMATS = (None, "nf4", "int8")


def load(
    path: str | Path,
    *,
    weights: str | None = None,
    dtype: str | torch.dtype = "auto",
    lazy: bool = False,
    auto_class: Any = None,
) -> nn.Module:
    """A Hugging Face model from a folder of safetensors files, as `from_pretrained` gives it, in little memory.

    The files are read one tensor at a time: an 8-billion-parameter model in NF4 takes its 4-bit layers and, while they
    are made, one weight in float32.

        model = fastrlhf.load("llama-8b", weights="nf4")

        model = fastrlhf.load("llama-8b", lazy=True)  # no values yet
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        optimizer = fastrlhf.offload(model, optimizer, device_memory="6GB", disk="/scratch")  # read into their tiers

    Args:
        path: the folder, with `config.json` and `*.safetensors`.
        weights: "nf4" or "int8" puts the linear maps of the layers into 4 or 8 bits, frozen: adapters on them can be
            trained. Embeddings, norms and the head keep `dtype`.
        dtype: of the weights (with `weights`, of the others): a dtype, its name, or "auto", that of the checkpoint.
        lazy: leave matrices without values, on the meta device, until `fastrlhf.offload` reads them into their tiers.
            Vectors are read now.
        auto_class: the transformers class that knows the architecture; None: `AutoModelForCausalLM`.

    Returns:
        The model, on the CPU, in evaluation mode.

    Raises:
        ValueError: no such folder, a file that is not whole, a tensor that is missing or has another shape, or an
            argument that cannot be meant.
    """
    folder = Path(path)
    if weights not in FORMATS:
        raise ValueError(f"weights is {weights!r}, expected one of {FORMATS}")
    if not (folder / "config.json").is_file():
        raise ValueError(f"path is {str(path)!r}, expected a folder with config.json and safetensors files")
    stored = stored_tensors(sorted(folder.glob("*.safetensors")))
    if not stored:
        raise ValueError(f"there are no safetensors files in {folder}: save the model with save_pretrained")
    model = _without_values(folder, auto_class, dtype, stored)
    places = _places(model, stored, folder)
    quantised = set()
    if weights is not None:

        def in_bits(name: str, layer: nn.Linear) -> QuantizedWeight:
            quantised.add(f"{name}.weight")
            return quantize(layer.weight, weights)

        for name in quantize_linears(model, weights, in_bits):
            _defer_parts(model.get_submodule(name), _Quantising(places[f"{name}.weight"], weights))
    for name, parameter in model.named_parameters():
        if name in places and name not in quantised:
            defer(parameter, lambda target, of=places[name]: read_stored(of, target))
    for name, buffer in model.named_buffers():
        if name in stored:
            read_stored(stored[name], buffer)
    for module in model.modules():
        if not (lazy and isinstance(module, QuantizedLinear)):
            _read(module, everything=not lazy)
    model.tie_weights()
    return model.eval()


def _without_values(folder: Path, auto_class: Any, dtype: str | torch.dtype, stored: dict[str, Stored]):
    """The model of a folder with its parameters on the meta device; buffers, which are computed, are real."""
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

    config = AutoConfig.from_pretrained(folder)
    if dtype == "auto":
        dtype = getattr(config, "dtype", None) or next(iter(stored.values())).dtype
    dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    with init_empty_weights(include_buffers=False):
        model = (auto_class or AutoModelForCausalLM).from_config(config, dtype=dtype)
    model.tie_weights()
    if (folder / "generation_config.json").is_file() and model.can_generate():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _places(model: nn.Module, stored: dict[str, Stored], folder: Path) -> dict[str, Stored]:
    """Where each parameter is stored, by its first name in the model; tied ones under any of theirs."""
    names: dict[int, list[str]] = {}
    expected = dict(model.named_parameters(remove_duplicate=False))
    for name, parameter in expected.items():
        names.setdefault(id(parameter), []).append(name)
    prefix = f"{model.base_model_prefix}."
    places, missing = {}, []
    for of_one in names.values():
        others = [name.removeprefix(prefix) for name in of_one] + [f"{prefix}{name}" for name in of_one]
        found = next((stored[name] for name in (*of_one, *others) if name in stored), None)
        if found is None:
            missing.append(of_one[0])
        elif found.shape != tuple(expected[of_one[0]].shape):
            raise ValueError(
                f"{of_one[0]} is {list(found.shape)} in {folder}, and its config.json makes it "
                f"{list(expected[of_one[0]].shape)}"
            )
        else:
            places[of_one[0]] = found
    if missing:
        raise ValueError(f"{folder} has no {', '.join(missing[:3])}: it is a checkpoint of another model")
    known = set(places.values())
    unused = [name for name, place in stored.items() if place not in known and name not in expected]
    unused = [name for name in unused if name not in dict(model.named_buffers())]
    if unused:
        warnings.warn(
            f"{len(unused)} tensors in {folder} are not of this model, {unused[0]} among them", stacklevel=3
        )
    return places


class _Quantising:
    """A stored weight that becomes the parts of a `QuantizedWeight`, which are asked for one by one.

    All but the codes (a thirtieth of them) are kept until then: parts lie in chunks of their dtypes, which are filled
    one after the other.
    """

    def __init__(self, stored: Stored, format: str):
        self._stored, self._format = stored, format
        self._kept: dict[str, Any] = {}

    def read(self, part: str, target: torch.Tensor) -> None:
        if part not in self._kept:
            # in float32, which the compiled kernel takes: the reference's temporaries are several times the weight
            weight = torch.empty(self._stored.shape, dtype=torch.float32)
            read_stored(self._stored, weight)
            self._kept = quantize(weight, self._format)._asdict()
        target.copy_(self._kept.pop(part))
        self._kept.pop("codes", None)


def _defer_parts(layer: QuantizedLinear, source: _Quantising) -> None:
    for name, part in PARTS.items():
        if (parameter := getattr(layer, name)) is not None:
            defer(parameter, lambda target, part=part: source.read(part, target))


def _read(module: nn.Module, everything: bool) -> None:
    """Give a module's own parameters their values, or its vectors alone."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        if is_deferred(parameter) and (everything or parameter.dim() < 2):
            real = torch.empty(parameter.shape, dtype=parameter.dtype)
            read_deferred(parameter, real)
            module._parameters[name] = nn.Parameter(real, parameter.requires_grad)
