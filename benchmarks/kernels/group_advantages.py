"""Group-relative advantages of a rollout: what is one pass worth where there is so little to compute?"""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "group_advantages"


def plain(scores, group_size, epsilon=1e-4):
    """GRPO's advantages as most trainers compute them."""
    grouped = scores.view(-1, group_size)
    return (grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + epsilon)


@pytest.mark.parametrize("shape", [(512, 16), (8, 8)], ids=str)
def bench_group_advantages(measure, device, shape):
    torch.manual_seed(0)
    scores = torch.randn(shape[0] * shape[1], device=device)
    measure(
        str(list(shape)),
        lambda: kernels.group_advantages(scores, group_size=shape[1]),
        eager=lambda: plain(scores, shape[1]),
    )
