"""Triton kernel that goes back from 8 and 4 bits, and its launcher."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels import triton as package
from fastrlhf.kernels.triton.base_weight import base_arguments, load_base

CONFIGS = [
    {"BLOCK_OUT": 4, "BLOCK_IN": 256, "num_warps": 1},
    {"BLOCK_OUT": 16, "BLOCK_IN": 256, "num_warps": 4},
]


def choose_config(out: int, width: int) -> dict:
    """Small tiles for a small weight."""
    return CONFIGS[0 if out * width < 1 << 18 else 1]


def serves(codes, *_):
    """Why this backend cannot take tensors like `codes`, or None."""
    return package.serves(torch.empty(0, device=codes.device))


@triton.jit
def dequantize_kernel(
    weight, scales, scale_scales, offset, nf4, dynamic, to, out, width,
    KIND: tl.constexpr, BLOCK_OUT: tl.constexpr, BLOCK_IN: tl.constexpr,
):  # fmt: skip
    first_out, first_in = tl.program_id(0).to(tl.int64) * BLOCK_OUT, tl.program_id(1) * BLOCK_IN
    tile = load_base(
        weight, scales, scale_scales, offset, nf4, dynamic, first_out, first_in, out, width,
        KIND, BLOCK_OUT, BLOCK_IN, to.dtype.element_ty,
    )  # fmt: skip
    o, i = first_out + tl.arange(0, BLOCK_OUT), first_in + tl.arange(0, BLOCK_IN)
    tl.store(to + o[:, None] * width + i[None, :], tile, mask=(o < out)[:, None] & (i < width)[None, :])


def dequantize(codes, scales, scale_scales, offset, in_features, dtype):
    """See `fastrlhf.kernels.dequantize`."""
    out = codes.shape[0]
    weight = torch.empty(out, in_features, dtype=dtype, device=codes.device)
    pointers, kind = base_arguments(codes, scales, scale_scales, offset)
    config = choose_config(out, in_features)
    grid = triton.cdiv(out, config["BLOCK_OUT"]), triton.cdiv(in_features, config["BLOCK_IN"])
    launch_triton(
        dequantize_kernel, grid, codes.device, *pointers, weight, out, in_features, KIND=kind, **config
    )
    return weight
