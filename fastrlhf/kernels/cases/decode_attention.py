"""Cases of `decode_attention`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """Rows of different lengths, one of them empty, in blocks that lie about; a window and a soft-cap; and no row."""

    def tensors(heads, key_heads, width):
        query = normal(4, heads, width, seed=1)
        caches = (normal(24, 16, key_heads, width, seed=seed) for seed in (2, 3))
        return [tensor.to(dtype) for tensor in (query, *caches)]

    table = torch.randperm(24, generator=torch.Generator().manual_seed(4)).to(torch.int32).view(4, 6)
    lengths = torch.tensor([1, 96, 0, 33], dtype=torch.int32)
    query, *caches = tensors(4, 2, 64)
    return {
        "grouped": (query, *caches, table, lengths, 0.2, None, None),
        "window, soft cap": (*tensors(3, 3, 40), table, lengths, 0.2, 20, 3.0),
        "no row": (query[:0], *caches, table[:0], lengths[:0], 0.2, None, None),
    }
