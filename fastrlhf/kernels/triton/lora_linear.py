"""Launcher of the Triton kernels of a layer's matrix product with low-rank adapters."""

from __future__ import annotations

from fastrlhf.kernels.triton.lora_linear_down import down
from fastrlhf.kernels.triton.lora_linear_product import LowRank, layer_product


def lora_linear(x, weight, scales, scale_scales, offset, lora_A, lora_B, group_offsets, scaling, bias):
    """See `fastrlhf.kernels.lora_linear`. Two launches: down to the rank, and everything else."""
    x, group_offsets, scaling = x.contiguous(), group_offsets.contiguous(), scaling.contiguous()
    hidden = down(x, lora_A.contiguous(), group_offsets, scaling, transposed=False)
    low_rank = LowRank(hidden, lora_B.contiguous(), group_offsets, False)
    base = weight, scales, scale_scales, offset
    return layer_product(x, base, x.shape[1], bias=bias, low_rank=low_rank), hidden
