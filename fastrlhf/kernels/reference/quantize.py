"""Weights in 8 and 4 bits, as the equations read."""

from __future__ import annotations

import torch

from fastrlhf.kernels.code_books import NF4_ZERO, table

NF4_BLOCK = 64


def quantize(weight, format):
    """See `fastrlhf.kernels.quantize`. Computes in float32."""
    return _int8(weight.float()) if format == "int8" else _nf4(weight.float())


def _int8(weight):
    maxima = weight.abs().amax(dim=1) if weight.shape[1] else weight.new_zeros(weight.shape[0])
    scales = maxima / 127
    codes = torch.where(scales[:, None] == 0, 0.0, weight / scales[:, None]).round().clamp(-127, 127)
    return codes.to(torch.int8), scales


def _nf4(weight):
    out, width = weight.shape
    blocks = torch.nn.functional.pad(weight, (0, -width % NF4_BLOCK)).view(
        out, -(-width // NF4_BLOCK), NF4_BLOCK
    )
    maxima = blocks.abs().amax(dim=2)
    fraction = torch.where(maxima[..., None] == 0, 0.0, blocks / maxima[..., None])
    codes = torch.bucketize(fraction, table("nf4 thresholds", weight.device)).to(torch.uint8).flatten(1)
    codes[:, width:] = NF4_ZERO
    return codes[:, ::2] << 4 | codes[:, 1::2], maxima
