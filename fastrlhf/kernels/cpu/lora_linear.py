"""A layer's matrix product with low-rank adapters on the CPU: the base's product, then each group's rows in place."""

from __future__ import annotations

import itertools

from fastrlhf.kernels.cpu.linear import MAX_THIN_BATCH, linear, thin_linear


def lora_linear(x, weight, scales, scale_scales, offset, lora_A, lora_B, group_offsets, scaling, bias):
    """See `fastrlhf.kernels.lora_linear`."""
    y = linear(x, weight, scales, scale_scales, offset, bias)
    hidden = x.new_zeros(x.shape[0], lora_A.shape[1])
    for g, rows in occupied(group_offsets):
        hidden[rows] = narrow_product(x[rows], lora_A[g]).mul_(scaling[g])
        y[rows].addmm_(hidden[rows], lora_B[g].T)
    return y, hidden


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
