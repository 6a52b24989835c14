"""Cases of `end_step`; a vocabulary of one token, so that all of what is marked changes."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """With tokens to mark and without; a row at its last position; and no row. All dtypes are the operation's own."""
    floats = [normal(3, seed=seed) for seed in range(4)]
    tokens, steps = torch.tensor([5, 0, 7]), torch.tensor([1, 0, 2**40])
    lengths, none = torch.tensor([2, 0, 5], dtype=torch.int32), torch.zeros(3, dtype=torch.int64)
    state = *floats[:2], tokens, steps, lengths
    return {
        "marked": (*state, torch.zeros(3, 1, dtype=torch.bool), none, *floats[2:], 9),
        "at the last position": (*state, None, tokens.flip(0), *floats[2:], 4),
        "no row": (*(tensor[:0] for tensor in state), None, none[:0], *(each[:0] for each in floats[2:]), 4),
    }
