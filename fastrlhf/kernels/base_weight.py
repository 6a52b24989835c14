"""The base weight of `linear` and `lora_linear`: a float tensor, or one in 8 or 4 bits, as four tensors in a row."""

from __future__ import annotations

import torch

from fastrlhf.kernels.checks import FLOATS, check_dims, check_dtype, check_shape
from fastrlhf.kernels.quantize import QuantizedWeight, check_quantized

BaseWeight = torch.Tensor | QuantizedWeight
Parts = tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]


def check_base(weight: BaseWeight, in_features: int) -> Parts:
    """The parts of `weight` that an operation takes (codes or the weight itself, scales, scale_scales, offset).

    Raises:
        ValueError, TypeError: it is not a weight `[out, in_features]`.
    """
    if isinstance(weight, QuantizedWeight):
        check_quantized("weight", weight)
        shape = weight.shape
        if shape[1] != in_features:
            raise ValueError(
                f"weight has shape {list(shape)}, expected [out, in] = {[shape[0], in_features]}"
            )
        return weight.codes, weight.scales, weight.scale_scales, weight.offset
    if weight.dim() != 2 or weight.shape[1] != in_features:
        check_dims("weight", weight, 2, "[out, in]")
        check_shape("weight", weight, (weight.shape[0], in_features), "[out, in]")
    check_dtype("weight", weight, FLOATS)
    return weight, None, None, None
