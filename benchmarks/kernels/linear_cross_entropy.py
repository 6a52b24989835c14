"""The cross-entropy of next tokens from hidden states, forward and backward, against whole logits.

A third of the rows does not count, as prompts do not in supervised fine-tuning on completions.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import beside
from benchmarks.kernels.linear_logprob import SHAPES, inputs, named
from fastrlhf import kernels

OPERATION = "linear_logprob"


def plain(hidden_states, weight, targets):
    """Whole logits, of the rows that do not count too."""
    logits = torch.nn.functional.linear(hidden_states, weight).float()
    return torch.nn.functional.cross_entropy(logits, targets)


@beside(reference=False)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head", ["frozen", "trainable"])
def bench_training(measure, device, head, shape):
    hidden_states, weight, targets = inputs(*shape, device)
    targets[::3] = -100
    leaves = [hidden_states.requires_grad_()]
    if head == "trainable":
        leaves.append(weight.requires_grad_())

    def ours():
        return torch.autograd.grad(kernels.linear_cross_entropy(hidden_states, weight, targets).loss, leaves)

    measure(
        named(shape, f"cross-entropy, {head} head"),
        ours,
        eager=lambda: torch.autograd.grad(plain(hidden_states, weight, targets), leaves),
    )
