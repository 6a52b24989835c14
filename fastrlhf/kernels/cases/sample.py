"""Cases of `sample`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """Every restriction, none, the largest logit, and settings of their own for each row."""
    logits, row_ids = normal(3, 67, seed=1, scale=3.0).to(dtype), torch.tensor([0, 7, 2**40])
    seen, banned = normal(3, 67, seed=2) > 0.5, (normal(67, seed=3) > 1).expand(3, 67)
    whole = [torch.tensor(values) for values in ([1, 2**62, -1], [0, 5, 2**31], [0, 9, 100])]
    real = [
        torch.tensor(values)
        for values in ([0.0, 0.7, 2.0], [0.5, 1.0, 0.9], [0.0, 0.1, 0.02], [1.5, 1.0, 0.7])
    ]
    seeds, steps, top_ks, (temperatures, *others) = *whole, real
    of_rows = [seeds, steps, temperatures, top_ks, *others]
    none = [None] * 7
    return {
        "all tokens": (logits, row_ids, 7, 3, 1.0, 0, 1.0, 0.0, 1.0, None, None, none),
        "top-k and top-p": (logits, row_ids, 2**62, 0, 0.7, 20, 0.8, 0.0, 1.0, None, None, none),
        "min-p, penalty and bans": (logits, row_ids, 7, 3, 1.3, 0, 1.0, 0.05, 1.3, seen, banned, none),
        "greedy": (logits, row_ids, 7, 3, 0.0, 0, 1.0, 0.0, 1.0, None, None, none),
        "each row its own": (logits, row_ids, 0, 0, 1.0, 0, 1.0, 0.0, 1.0, seen, None, of_rows),
        "no row": (logits[:0], row_ids[:0], 7, 3, 1.0, 0, 1.0, 0.0, 1.0, None, None, none),
    }
