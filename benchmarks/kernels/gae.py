"""GAE over a rollout: does one scan pay against a Python loop over columns?"""

from __future__ import annotations

import pytest
import torch

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


@pytest.mark.parametrize("shape", [(64, 512), (16, 64)], ids=str)
def bench_gae(measure, device, shape):
    torch.manual_seed(0)
    rewards, values = torch.randn(2, *shape, device=device)
    mask = torch.arange(shape[1], device=device) < torch.randint(
        1, shape[1] + 1, (shape[0], 1), device=device
    )
    measure(lambda: plain(rewards, values, mask), lambda: kernels.gae(rewards, values, mask))
