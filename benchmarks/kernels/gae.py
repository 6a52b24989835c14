"""GAE over a rollout, and the whitening after it: does one scan pay against a Python loop over columns?"""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import beside
from fastrlhf import kernels

OPERATION = "gae"


def plain(rewards, values, mask, gamma=1.0, lam=0.95):
    """The loop of most trainers."""
    advantages, last = [], 0.0
    values = values * mask
    for t in reversed(range(rewards.shape[1])):
        following = values[:, t + 1] if t + 1 < rewards.shape[1] else 0.0
        last = (rewards[:, t] + gamma * following - values[:, t] + gamma * lam * last) * mask[:, t]
        advantages.append(last)
    advantages = torch.stack(advantages[::-1], dim=1)
    return advantages, advantages + values


def by_product(rewards, values, mask, decay, gamma=1.0):
    """The sum over later steps as a product with a triangular matrix: for masks without holes, and T^2 numbers."""
    values = values * mask
    following = torch.nn.functional.pad(values[:, 1:], (0, 1))
    advantages = ((rewards + gamma * following - values) * mask) @ decay * mask
    return advantages, advantages + values


def decay_matrix(columns, device, gamma=1.0, lam=0.95):
    """`[T, T]`: how much the step of each row counts in the advantage of each column."""
    steps = torch.arange(columns, device=device)
    ahead = steps[:, None] - steps
    return torch.where(ahead >= 0, (gamma * lam) ** ahead.clamp(min=0).float(), 0.0)


def plain_whiten(advantages, mask):
    """Masked mean and unbiased variance, as trainers write them."""
    count = mask.sum()
    mean = (advantages * mask).sum() / count
    variance = ((advantages - mean).square() * mask).sum() / (count - 1)
    return (advantages - mean) * torch.rsqrt(variance + 1e-8) * mask


def inputs(shape, device):
    torch.manual_seed(0)
    rewards, values = torch.randn(2, *shape, device=device)
    lengths = torch.randint(1, shape[1] + 1, (shape[0], 1), device=device)
    return rewards, values, torch.arange(shape[1], device=device) < lengths


# torch.compile would unroll the loop into thousands of operations.
@beside("product", compiled=False)
@pytest.mark.parametrize("shape", [(64, 512), (16, 64)], ids=str)
def bench_gae(measure, device, shape):
    given, decay = inputs(shape, device), decay_matrix(shape[1], device)
    measure(
        f"{list(shape)}",
        lambda: kernels.gae(*given),
        eager=lambda: plain(*given),
        product=lambda: by_product(*given, decay),
    )


@beside("product", compiled=False)
@pytest.mark.parametrize("shape", [(64, 512), (16, 64)], ids=str)
def bench_gae_and_whitening(measure, device, shape):
    (rewards, values, mask), decay = inputs(shape, device), decay_matrix(shape[1], device)

    def ours():
        advantages, returns, moments = kernels.gae(rewards, values, mask)
        return kernels.whiten(advantages, mask, moments), returns

    def others(function, *options):
        advantages, returns = function(rewards, values, mask, *options)
        return plain_whiten(advantages, mask), returns

    measure(
        f"{list(shape)} and whitening",
        ours,
        eager=lambda: others(plain),
        product=lambda: others(by_product, decay),
    )
