"""A layer's matrix product with low-rank adapters, as the equation reads."""

from __future__ import annotations

import torch

from fastrlhf.kernels.reference.linear import linear


def lora_linear(x, weight, scales, scale_scales, offset, lora_A, lora_B, group_offsets, scaling, bias):
    """See `fastrlhf.kernels.lora_linear`. Every adapter sees every row, and the rows of others count as zeros."""
    y = linear(x, weight, scales, scale_scales, offset, bias)
    hidden = lora_A.new_zeros(x.shape[0], lora_A.shape[1])
    low_rank = lora_B.new_zeros(x.shape[0], lora_B.shape[1])
    for g, member in enumerate(members(group_offsets, x.shape[0])):
        of_group = scaling[g].to(hidden.dtype) * (x.to(lora_A.dtype) @ lora_A[g].T)
        hidden = torch.where(member, of_group, hidden)
        low_rank = torch.where(member, of_group @ lora_B[g].T, low_rank)
    # added in the wider of the two dtypes, rounded once
    return (y + low_rank + nan_if_bad(group_offsets, x.shape[0])).to(x.dtype), hidden


def members(group_offsets, rows):
    """For each group which rows are its own, `[N, 1]`. The offsets stay on their device."""
    row = torch.arange(rows, device=group_offsets.device)[:, None]
    starts, ends = group_offsets[:-1], group_offsets[1:]
    return [(row >= start) & (row < end) for start, end in zip(starts, ends, strict=True)]


def nan_if_bad(group_offsets, rows):
    """NaN if the offsets fall or leave [0, rows], else zero, float32 `[]`; the host does not wait to know."""
    bad = (group_offsets.diff() < 0).any() | (group_offsets[0] < 0) | (group_offsets[-1] > rows)
    return torch.where(bad, torch.nan, 0.0)
