"""Back from 8 and 4 bits, as the equations read."""

from __future__ import annotations

import torch

from fastrlhf.kernels.code_books import table

NF4_BLOCK = 64
SCALE_BLOCK = 256


def dequantize(codes, scales, scale_scales, offset, in_features, dtype):
    """See `fastrlhf.kernels.dequantize`. The product is float32 and rounded once."""
    if codes.dtype == torch.int8:
        return (codes.float() * scales[:, None]).to(dtype)
    pairs = torch.stack([codes >> 4, codes & 15], dim=2).long()
    values = table("nf4", codes.device)[pairs].view(*scales.shape, NF4_BLOCK)
    weight = values * block_maxima(scales, scale_scales, offset)[..., None]
    return weight.flatten(1)[:, :in_features].to(dtype).contiguous()


def block_maxima(scales, scale_scales, offset):
    """The blocks' maxima, `[out, ceil(in / 64)]` float32, from their 8-bit codes."""
    of_block = scale_scales.repeat_interleave(SCALE_BLOCK)[: scales.numel()].view(scales.shape)
    return table("dynamic", scales.device)[scales.long()] * of_block + offset
