"""Linear maps whose frozen weight is in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fastrlhf.kernels import QuantizedWeight, dequantize, linear, quantize
from fastrlhf.models.backbone import backbone
from fastrlhf.models.parts import original_class

# The tensors of a `QuantizedWeight` under the names that they have in a `QuantizedLinear`.
PARTS = {"weight": "codes", "scales": "scales", "scale_scales": "scale_scales", "offset": "offset"}


class QuantizedLinear(nn.Linear):
    """An `nn.Linear` whose weight is a `QuantizedWeight`; PEFT puts its adapters on it as on any other.

    Attributes:
        weight: the codes; scales, scale_scales, offset: as in `QuantizedWeight` (the last two None for int8). All are
            frozen parameters, so that they move with the model, and lie in chunks when it is offloaded.
        dtype: of the weight that was quantised.
    """

    def __init__(self, weight: QuantizedWeight, bias: nn.Parameter | None):
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight.shape
        self.dtype = weight.dtype
        for name, part in PARTS.items():
            tensor = getattr(weight, part)
            self.register_parameter(name, None if tensor is None else nn.Parameter(tensor, False))
        self.register_parameter("bias", bias)

    @property
    def quantized(self) -> QuantizedWeight:
        """The weight, made of the module's own parameters."""
        parts = (self.weight, self.scales, self.scale_scales, self.offset)
        return QuantizedWeight(*parts, self.in_features, self.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return linear(x, self.quantized, self.bias)

    def dequantized(self) -> nn.Linear:
        """An ordinary linear map of nearly the values that were quantised, in memory of its own."""
        with torch.device("meta"):
            made = nn.Linear(self.in_features, self.out_features, self.bias is not None)
        made.weight = nn.Parameter(dequantize(self.quantized), False)
        if self.bias is not None:
            made.bias = nn.Parameter(self.bias.detach().clone(), False)
        return made

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, format={self.quantized.format}"

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> nn.Module:
        """As every module's, but a cast to another dtype leaves the scales in float32."""
        parts = {id(part) for name in PARTS if (part := getattr(self, name)) is not None}

        def apply(tensor: torch.Tensor) -> torch.Tensor:
            applied = fn(tensor)
            cast = id(tensor) in parts and applied.dtype != tensor.dtype
            return tensor.to(applied.device) if cast else applied

        return super()._apply(apply, recurse)


def base_weight(layer: nn.Module) -> torch.Tensor | QuantizedWeight:
    """The weight of a linear map as `kernels.linear` takes it."""
    return layer.quantized if isinstance(layer, QuantizedLinear) else layer.weight


def quantize_linears(
    model: nn.Module,
    format: str,
    weight_of: Callable[[str, nn.Linear], QuantizedWeight] | None = None,
) -> list[str]:
    """Put the linear maps in the layers of a Hugging Face model into 8 or 4 bits, in place, one after the other.

    Embeddings, norms and the head stay as they are. All that is quantised is frozen.

    Args:
        format: "nf4" or "int8".
        weight_of: gives the quantised weight of a map by its name in `model`; None quantises the values that it has
            (of one on the meta device: their shapes).

    Returns:
        The names of the maps, in module order.

    Raises:
        ValueError: there are none, or a format that there is not.
    """
    inner = backbone(model)
    prefix = next(name for name, module in model.named_modules() if module is inner)
    found = []
    for parent_name, parent in list(inner.named_modules(prefix=prefix)):
        for child_name, child in list(parent.named_children()):
            if original_class(child) is not nn.Linear:
                continue
            name = f"{parent_name}.{child_name}" if parent_name else child_name
            weight = quantize(child.weight, format) if weight_of is None else weight_of(name, child)
            bias = None if child.bias is None else child.bias.requires_grad_(False)
            setattr(parent, child_name, QuantizedLinear(weight, bias))
            found.append(name)
    if not found:
        raise ValueError(
            f"weights is {format!r}, and {type(model).__name__} has no torch.nn.Linear in its layers to quantise"
        )
    return found
