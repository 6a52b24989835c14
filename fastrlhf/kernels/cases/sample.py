"""Cases of `sample`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """Every restriction, none, and the largest logit."""
    logits, row_ids = normal(3, 67, seed=1, scale=3.0).to(dtype), torch.tensor([0, 7, 2**40])
    return {
        "all tokens": (logits, row_ids, 7, 3, 1.0, 0, 1.0),
        "top-k and top-p": (logits, row_ids, 2**62, 0, 0.7, 20, 0.8),
        "greedy": (logits, row_ids, 7, 3, 0.0, 0, 1.0),
        "no row": (logits[:0], row_ids[:0], 7, 3, 1.0, 0, 1.0),
    }
