"""Log-probabilities and entropy from hidden states: tiles of logits against whole ones."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "linear_logprob"


def plain(hidden_states, weight, targets):
    """Whole logits and whole log-probabilities."""
    log_p = torch.log_softmax(torch.nn.functional.linear(hidden_states, weight).float(), dim=-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=-1)


@pytest.mark.parametrize("shape", [(1024, 576, 49_152), (256, 576, 49_152)], ids=str)
@pytest.mark.parametrize("training", [False, True], ids=["forward", "forward and backward"])
def bench_linear_logprob(measure, device, shape, training):
    torch.manual_seed(0)
    rows, width, vocabulary = shape
    hidden_states = torch.randn(rows, width, device=device, requires_grad=training)  # the base is frozen
    weight = torch.randn(vocabulary, width, device=device) / width**0.5
    targets = torch.randint(vocabulary, (rows,), device=device)

    def run(function):
        logprobs, entropy = function(hidden_states, weight, targets)
        if training:
            torch.autograd.grad(logprobs.sum() + 0.01 * entropy.sum(), hidden_states)

    measure(lambda: run(plain), lambda: run(kernels.linear_logprob))
