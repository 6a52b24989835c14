"""A layer's matrix product with low-rank adapters on the CPU: all in one pass where one adapter has all of many rows,
else the base's product, then each group's rows in place."""

from __future__ import annotations

import itertools

import torch

from fastrlhf.kernels.cpu.linear import MAX_THIN_BATCH, linear, thin_linear
from fastrlhf.kernels.cpu.matmul import LowRank, matmul


def lora_linear(x, weight, scales, scale_scales, offset, lora_A, lora_B, group_offsets, scaling, bias):
    """See `fastrlhf.kernels.lora_linear`."""
    if in_one_pass(x, weight, group_offsets):
        adapter = LowRank(lora_A[0].contiguous().T, lora_B[0].contiguous().T, float(scaling))
        return matmul(
            x.contiguous(), weight.contiguous().T, None if bias is None else bias.contiguous(), adapter
        )
    y = linear(x, weight, scales, scale_scales, offset, bias)
    hidden = x.new_zeros(x.shape[0], lora_A.shape[1])
    for g, rows in occupied(group_offsets):
        hidden[rows] = narrow_product(x[rows], lora_A[g]).mul_(scaling[g])
        y[rows].addmm_(hidden[rows], lora_B[g].T)
    return y, hidden


def in_one_pass(x, weight, group_offsets):
    """Whether a float32 base and the adapter of all rows make one product, of more rows than a thin one has."""
    return (
        weight.dtype == torch.float32
        and x.shape[0] > MAX_THIN_BATCH
        and weight.numel() > 0
        and group_offsets.tolist() == [0, x.shape[0]]
    )


def occupied(group_offsets):
    """Each group that has rows, with the slice of them."""
    offsets = group_offsets.tolist()
    groups = itertools.pairwise(offsets)
    return [(g, slice(start, end)) for g, (start, end) in enumerate(groups) if start < end]


def narrow_product(x, weight):
    """`x weight^T` where the weight has few rows: the thin kernel with the parts changed, which reads x once."""
    if 0 in weight.shape or weight.shape[0] > MAX_THIN_BATCH:
        return x @ weight.T
    return thin_linear(weight, x).T
