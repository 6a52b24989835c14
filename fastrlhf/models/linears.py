"""The linear maps of a model's blocks, bare or with PEFT's LoRA around them, made of our products."""

from __future__ import annotations

import torch
from torch import nn

from fastrlhf.kernels import QuantizedWeight, linear, lora_linear
from fastrlhf.models.one_adapter import scale_of, whole_batch
from fastrlhf.models.parts import original_class
from fastrlhf.models.quantized import QuantizedLinear, base_weight


class Linear:
    """Forward of `nn.Linear`."""

    def forward(self, x):
        return layer_product(x, self.weight, self.bias)


class LoraLinear:
    """Forward of PEFT's `lora.Linear`: base and active adapters in one operation, where that is all it computes."""

    def forward(self, x, *args, **kwargs):
        adapters = _plain_adapters(self)
        if args or kwargs or not adapters:
            return super().forward(x, *args, **kwargs)
        base = self.get_base_layer()
        return lora_product(x, base_weight(base), base.bias, *_as_one(self, adapters))


def layer_product(
    x: torch.Tensor, weight: torch.Tensor | QuantizedWeight, bias: torch.Tensor | None
) -> torch.Tensor:
    """`x weight^T + bias` in the dtype that autocast asks for, or that of x."""
    x = _autocast(x)
    return linear(x, weight, None if bias is None else bias.to(x.dtype))


def lora_product(
    x: torch.Tensor,
    weight: torch.Tensor | QuantizedWeight,
    bias: torch.Tensor | None,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    scaling: float,
) -> torch.Tensor:
    """`x weight^T + bias + scaling (x lora_A^T) lora_B^T` for x `[..., in]` and one adapter for all rows."""
    x = _autocast(x)
    rows = x.reshape(-1, x.shape[-1])
    if lora_A.dtype not in (x.dtype, torch.promote_types(x.dtype, torch.float32)):
        lora_A, lora_B = lora_A.to(x.dtype), lora_B.to(x.dtype)
    bias = None if bias is None else bias.to(x.dtype)
    bounds, scale = whole_batch(len(rows), x.device), scale_of(scaling, x.device)
    y = lora_linear(rows, weight, lora_A[None], lora_B[None], bounds, scale, bias)
    return y.view(*x.shape[:-1], y.shape[1])


def linear_part(module: nn.Module) -> type | None:
    """`Linear` or `LoraLinear` for a module that it can replace, None for others."""
    if hasattr(type(module), "accelerated_from"):
        return None
    if type(module) is nn.Linear:
        return Linear
    if type(module).__module__ == "peft.tuners.lora.layer" and type(module).__name__ == "Linear":
        # a subclass that is not ours may be quantised in another way
        base = original_class(module.get_base_layer())
        return LoraLinear if base in (nn.Linear, QuantizedLinear) else None
    return None


def linear_parts(backbone: nn.Module) -> list[tuple[nn.Module, type]]:
    """The linear maps in a backbone with the forwards that replace theirs. An adapter's own two are left alone: the
    product that holds them does not call them."""
    adapters = {
        id(module)
        for layer in backbone.modules()
        if hasattr(layer, "lora_A")
        for module in (*layer.lora_A.modules(), *layer.lora_B.modules())
    }
    found = [(module, linear_part(module)) for module in backbone.modules() if id(module) not in adapters]
    return [(module, part) for module, part in found if part is not None]


def _autocast(x: torch.Tensor) -> torch.Tensor:
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def _plain_adapters(layer: nn.Module) -> list[str]:
    """The adapters whose low-rank products the layer adds to its base's; none where it does anything else."""
    if layer.disable_adapters or layer.merged:
        return []
    names = [name for name in layer.active_adapters if name in layer.lora_A]
    plain = all(
        name not in layer.lora_variant
        and not layer.lora_bias.get(name, False)
        and layer.lora_A[name].weight.dtype == layer.lora_A[names[0]].weight.dtype
        and not _drops(layer.lora_dropout[name])
        for name in names
    )
    return names if plain else []


def _drops(dropout: nn.Module) -> bool:
    return dropout.training and getattr(dropout, "p", 0.0) > 0


def _as_one(layer: nn.Module, names: list[str]) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Several adapters side by side are one of their ranks' sum, their scales taken into A."""
    pairs = [(layer.lora_A[name].weight, layer.lora_B[name].weight) for name in names]
    if len(names) == 1:
        return *pairs[0], layer.scaling[names[0]]
    scaled = [layer.scaling[name] * A for name, (A, _) in zip(names, pairs, strict=True)]
    return torch.cat(scaled), torch.cat([B for _, B in pairs], dim=1), 1.0
