"""Log-probabilities of eight chosen and eight rejected sequences, forward and backward, against whole logits."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import beside
from benchmarks.kernels.linear_logprob import SHAPES, inputs, named
from fastrlhf import kernels

OPERATION = "linear_logprob"
SEQUENCES = 16


def plain(hidden_states, weight, targets, lengths):
    """Whole logits of every row."""
    log_p = torch.log_softmax(torch.nn.functional.linear(hidden_states, weight).float(), dim=-1)
    logprobs = log_p.gather(1, targets[:, None]).squeeze(1)
    return torch.stack([part.sum() for part in logprobs.split(lengths.tolist())])


@beside(reference=False)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head", ["frozen", "trainable"])
def bench_training(measure, device, head, shape):
    hidden_states, weight, targets = inputs(*shape, device)
    lengths = torch.full((SEQUENCES,), len(targets) // SEQUENCES, device=device)
    lengths[-1] += len(targets) - int(lengths.sum())
    leaves = [hidden_states.requires_grad_()]
    if head == "trainable":
        leaves.append(weight.requires_grad_())

    def loss(chosen, rejected):
        return -torch.nn.functional.logsigmoid(0.1 * (chosen - rejected)).sum()

    def ours():
        output = kernels.linear_preference(hidden_states, weight, targets, lengths)
        return torch.autograd.grad(loss(output.chosen, output.rejected), leaves)

    def eager():
        return torch.autograd.grad(loss(*plain(hidden_states, weight, targets, lengths).chunk(2)), leaves)

    measure(named(shape, f"preference, {head} head"), ours, eager=eager)
