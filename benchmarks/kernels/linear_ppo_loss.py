"""PPO's loss from hidden states with its backward: one operation against its two parts, and against whole logits."""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import beside
from fastrlhf import kernels

OPERATION = "linear_ppo_loss"

ROWS, VOCABULARY = 1024, 50_304


def plain(hidden_states, weight, targets, entropy_coef, known):
    """Whole logits and whole log-probabilities; the loss, next to nothing beside them, in one pass."""
    log_p = torch.log_softmax(torch.nn.functional.linear(hidden_states, weight).float(), dim=-1)
    logprobs = log_p.gather(1, targets[:, None]).squeeze(1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1) if entropy_coef else None
    return kernels.ppo_loss(logprobs, **known, entropy=entropy, entropy_coef=entropy_coef).loss


def composed(hidden_states, weight, targets, entropy_coef, known):
    """The two operations that `linear_ppo_loss` is."""
    logprobs, entropy = kernels.linear_logprob(hidden_states, weight, targets, entropy_grad=entropy_coef != 0)
    return kernels.ppo_loss(logprobs, **known, entropy=entropy, entropy_coef=entropy_coef).loss


def fused(hidden_states, weight, targets, entropy_coef, known):
    return kernels.linear_ppo_loss(hidden_states, weight, targets, **known, entropy_coef=entropy_coef).loss


@beside("composed", reference=False)
@pytest.mark.parametrize("width", [256, 576])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
@pytest.mark.parametrize("head", ["frozen", "trainable"])
def bench_training(measure, device, head, entropy_coef, width):
    torch.manual_seed(0)
    hidden_states = torch.randn(ROWS, width, device=device, requires_grad=True)
    weight = torch.randn(VOCABULARY, width, device=device) / width**0.5
    targets = torch.randint(VOCABULARY, (ROWS,), device=device)
    known = {
        "old_logprobs": torch.randn(ROWS, device=device) - 11,
        "advantages": torch.randn(ROWS, device=device),
        "mask": torch.ones(ROWS, dtype=torch.bool, device=device),
    }
    leaves = [hidden_states, weight.requires_grad_()] if head == "trainable" else [hidden_states]

    def run(function):
        return torch.autograd.grad(function(hidden_states, weight, targets, entropy_coef, known), leaves)

    bonus = ", entropy bonus" if entropy_coef else ""
    measure(
        f"[{ROWS}, {width}] x [{VOCABULARY}, {width}] {head} head{bonus}",
        lambda: run(fused),
        eager=lambda: run(plain),
        composed=lambda: run(composed),
    )
