"""PPO's loss from hidden states with its backward: one operation against `linear_logprob` with `ppo_loss`, and against
whole logits."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "linear_ppo_loss"


def plain(hidden_states, weight, targets, known, entropy_coef):
    """Whole logits and whole log-probabilities; the loss, which is next to nothing beside them, in one pass."""
    log_p = torch.log_softmax(torch.nn.functional.linear(hidden_states, weight).float(), dim=-1)
    logprobs = log_p.gather(1, targets[:, None]).squeeze(1)
    entropy = -(log_p.exp() * log_p).sum(dim=-1) if entropy_coef else None
    return kernels.ppo_loss(logprobs, **known, entropy=entropy, entropy_coef=entropy_coef).loss


def composed(hidden_states, weight, targets, known, entropy_coef):
    """The two operations that `linear_ppo_loss` is."""
    head = kernels.linear_logprob(hidden_states, weight, targets, entropy_grad=entropy_coef != 0)
    return kernels.ppo_loss(head.logprobs, **known, entropy=head.entropy, entropy_coef=entropy_coef).loss


def fused(hidden_states, weight, targets, known, entropy_coef):
    return kernels.linear_ppo_loss(hidden_states, weight, targets, **known, entropy_coef=entropy_coef).loss


@pytest.mark.parametrize("width", [256, 576])
@pytest.mark.parametrize("entropy_coef", [0.0, 0.01])
@pytest.mark.parametrize("trainable", [False, True], ids=["frozen", "trainable"])
@pytest.mark.parametrize("way", [fused, composed], ids=["fused", "composed"])
def bench_linear_ppo_loss(measure, device, way, trainable, entropy_coef, width):
    torch.manual_seed(0)
    rows, vocabulary = 1024, 50_304
    hidden_states = torch.randn(rows, width, device=device, requires_grad=True)
    weight = (torch.randn(vocabulary, width, device=device) / width**0.5).requires_grad_(trainable)
    targets = torch.randint(vocabulary, (rows,), device=device)
    known = {
        "old_logprobs": torch.randn(rows, device=device) - 11,
        "advantages": torch.randn(rows, device=device),
        "mask": torch.ones(rows, dtype=torch.bool, device=device),
    }
    leaves = [hidden_states, weight] if trainable else [hidden_states]

    def run(function):
        torch.autograd.grad(function(hidden_states, weight, targets, known, entropy_coef), leaves)

    measure(lambda: run(plain), lambda: run(way))
