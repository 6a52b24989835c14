"""Cases of `linear_logprob`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal

ROWS, WIDTH, VOCABULARY = 5, 48, 131


def cases(dtype):
    """A vocabulary that no tile divides, with and without bias, soft cap and slopes."""
    hidden_states, weight = normal(ROWS, WIDTH, seed=1).to(dtype), normal(VOCABULARY, WIDTH, seed=2).to(dtype)
    targets = torch.tensor([0, 1, 64, 129, VOCABULARY - 1])
    bias = normal(VOCABULARY, seed=3).to(dtype)
    return {
        "plain": (hidden_states, weight, targets, None, 1.0, None, 0),
        "bias, temperature, soft cap": (hidden_states, weight, targets, bias, 0.7, 8.0, 2),
        "slope of the logprob": (hidden_states, weight, targets, None, 0.7, None, 1),
        "no row": (hidden_states[:0], weight, targets[:0], None, 1.0, None, 0),
    }
