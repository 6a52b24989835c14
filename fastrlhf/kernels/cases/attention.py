"""Cases of `attention`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal

HEADS, KEY_HEADS, WIDTH = 4, 2, 32


def cases(dtype):
    """Sequences of different lengths, one of them empty; padding, a window and a soft cap; a single token."""
    made = {}
    for name, lengths, skip, window, softcap in (
        ("packed", (33, 0, 5, 1), None, None, None),
        ("window, soft cap", (40,), None, 7, 5.0),
        ("left padding", (19, 19), (3, 19), None, None),
        ("one token", (1,), None, None, None),
    ):
        tokens = sum(lengths)
        query = normal(tokens, HEADS, WIDTH, seed=1).to(dtype)
        key, value = (normal(tokens, KEY_HEADS, WIDTH, seed=seed).to(dtype) for seed in (2, 3))
        bounds = torch.tensor([0, *lengths]).cumsum(0).int()
        skips = None if skip is None else torch.tensor(skip, dtype=torch.int32)
        made[name] = (query, key, value, bounds, skips, max(lengths), WIDTH**-0.5, window, softcap)
    return made
