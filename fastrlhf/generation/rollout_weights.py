"""Copies of the weights in 8 bits, for a rollout alone."""

from __future__ import annotations

import torch

from fastrlhf.kernels import QuantizedWeight, quantize
from fastrlhf.models.decoder import Decoder, Projection


def quantised(decoder: Decoder) -> Decoder:
    """The decoder with all projections and the head in int8, a scale an output channel; the embedding and the adapters
    stay as they are. A quarter of the float32 weights' bytes; made anew where the weights have changed since."""
    decoder = decoder.map_projections(_quantised)
    return decoder._replace(head=_quantised(decoder.head))


@torch.no_grad()
def _quantised(projection: Projection) -> Projection:
    weight = projection.weight.T.contiguous() if projection.transposed else projection.weight
    return projection._replace(weight=quantize(weight, "int8"), transposed=False)


def quantised_bytes(decoder: Decoder) -> int:
    """What the copies take."""
    weights = [projection.weight for projection in decoder.projections()]
    return sum(weight.nbytes for weight in weights if isinstance(weight, QuantizedWeight))
