"""Copies of the weights in 8 bits, for a rollout alone."""

from __future__ import annotations

import torch

from fastrlhf.kernels import QuantizedWeight, quantize
from fastrlhf.kernels.autocast import switched_off
from fastrlhf.models.decoder import Decoder, Projection


@torch.no_grad()
def quantised(decoder: Decoder) -> Decoder:
    """The decoder with all projections and the head in int8, a scale an output channel, their adapters merged in; the
    embedding and a base that is quantised already stay as they are. A quarter of the float32 weights' bytes; made anew
    where those have changed since.

    Raises:
        FloatingPointError: a weight is not finite (on a CPU; a GPU finds NaN logits); the message names the layer.
    """
    try:
        layers = decoder.map_projections(_quantised)
        with decoder.having("head"):
            return layers._replace(head=_quantised(decoder.head))
    except ValueError:
        raise FloatingPointError(
            f"a weight of {_where_not_finite(decoder)} is NaN or infinite, which 8 bits cannot hold"
        ) from None


def _where_not_finite(decoder: Decoder) -> str:
    for index, layer in enumerate(decoder.layers):
        projections = decoder._replace(layers=(layer,)).projections()
        with decoder.having(index):
            *of_layer, _ = (
                _merged(projection)[0]
                for projection in projections
                if not isinstance(projection.weight, QuantizedWeight)
            )
            if not all(bool(weight.isfinite().all()) for weight in of_layer):
                return f"layer {index}"
    return "the head"


def _quantised(projection: Projection) -> Projection:
    if isinstance(projection.weight, QuantizedWeight):
        return projection
    weight, bias = _merged(projection)
    return Projection(quantize(weight.contiguous(), "int8")._replace(dtype=projection.weight.dtype), bias)


def _merged(projection: Projection) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Weight `[out, in]` and bias with the adapters added to them, in float32 where there are any."""
    weight, bias, adapters, transposed = projection
    weight = weight.T if transposed else weight
    for down, up, of_adapter, scaling in adapters:
        with switched_off(weight):
            weight = torch.addmm(weight.float(), up.float(), down.float(), alpha=scaling)
        if of_adapter is not None:
            added = (scaling * of_adapter).to(projection.weight.dtype)
            bias = added if bias is None else bias + added
    return weight, bias


def quantised_bytes(decoder: Decoder) -> int:
    """What the copies take."""
    weights = [projection.weight for projection in decoder.projections()]
    return sum(weight.nbytes for weight in weights if isinstance(weight, QuantizedWeight))
