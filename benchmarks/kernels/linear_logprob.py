"""Log-probabilities and entropy from hidden states: tiles of logits against whole ones."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import beside
from fastrlhf import kernels

OPERATION = "linear_logprob"

# The 17 M model's head, one of its vocabulary at SmolLM2's width, and SmolLM2's own.
SHAPES = [(1024, 256, 50_304), (1024, 576, 50_304), (1024, 576, 49_152)]


def plain(hidden_states, weight, targets):
    """Whole logits and whole log-probabilities."""
    log_p = torch.log_softmax(torch.nn.functional.linear(hidden_states, weight).float(), dim=-1)
    return log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(dim=-1)


def plain_logprobs(hidden_states, weight, targets):
    """The log-probabilities alone, which is all that a loss without an entropy term needs."""
    logits = torch.nn.functional.linear(hidden_states, weight).float()
    return torch.log_softmax(logits, dim=-1).gather(1, targets[:, None]).squeeze(1)


def inputs(rows, width, vocabulary, device):
    torch.manual_seed(0)
    weight = torch.randn(vocabulary, width, device=device) / width**0.5
    return torch.randn(rows, width, device=device), weight, torch.randint(vocabulary, (rows,), device=device)


def named(shape, what):
    rows, width, vocabulary = shape
    return f"[{rows}, {width}] x [{vocabulary}, {width}] {what}"


@beside(reference=False)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@torch.inference_mode()
def bench_forward(measure, device, shape):
    given = inputs(*shape, device)
    measure(named(shape, "forward"), lambda: kernels.linear_logprob(*given), eager=lambda: plain(*given))


@beside(reference=False)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("head", ["frozen", "trainable"])
def bench_training(measure, device, head, shape):
    """Forward and backward of the log-probabilities; no logits' entropy, which the plain way would pay for."""
    hidden_states, weight, targets = inputs(*shape, device)
    leaves = [hidden_states.requires_grad_()]
    if head == "trainable":
        leaves.append(weight.requires_grad_())
    grad = torch.randn(shape[0], device=device)

    def ours():
        logprobs = kernels.linear_logprob(hidden_states, weight, targets, entropy_grad=False).logprobs
        return torch.autograd.grad(logprobs, leaves, grad)

    def eager():
        return torch.autograd.grad(plain_logprobs(hidden_states, weight, targets), leaves, grad)

    measure(named(shape, f"{head} head"), ours, eager=eager)


@beside(reference=False)
@pytest.mark.parametrize("head", ["frozen", "trainable"])
def bench_training_with_entropy(measure, device, head):
    """As with an entropy bonus: both outputs have a gradient."""
    hidden_states, weight, targets = inputs(*SHAPES[1], device)
    leaves = [hidden_states.requires_grad_()]
    if head == "trainable":
        leaves.append(weight.requires_grad_())

    def run(function):
        logprobs, entropy = function(hidden_states, weight, targets)
        return torch.autograd.grad(logprobs.sum() + 0.01 * entropy.sum(), leaves)

    measure(
        named(SHAPES[1], f"{head} head, entropy bonus"),
        lambda: run(kernels.linear_logprob),
        eager=lambda: run(plain),
    )
