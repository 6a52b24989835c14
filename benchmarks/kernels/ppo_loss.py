"""PPO loss and its backward: one pass against a chain of elementwise operations under autograd."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "ppo_loss"


def plain(logprobs, old_logprobs, advantages, mask, values, old_values, returns):
    """The loss of most trainers, with the statistics that they log."""
    ratio = torch.exp(logprobs - old_logprobs)
    unclipped, clipped = -advantages * ratio, -advantages * ratio.clamp(0.8, 1.2)
    clipped_values = torch.clamp(values, old_values - 0.2, old_values + 0.2)
    squares, clipped_squares = (values - returns) ** 2, (clipped_values - returns) ** 2
    count = mask.sum()

    def mean(term):
        return (term * mask).sum() / count

    loss = mean(torch.max(unclipped, clipped)) + 0.1 * 0.5 * mean(torch.max(squares, clipped_squares))
    with torch.no_grad():
        mean(0.5 * (logprobs - old_logprobs) ** 2), mean(ratio), mean((clipped > unclipped).float())
        mean((clipped_squares > squares).float())
    return loss


@pytest.mark.parametrize("shape", [(64, 512), (16, 64)], ids=str)
def bench_ppo_loss(measure, device, shape):
    torch.manual_seed(0)
    tensors = torch.randn(6, *shape, device=device).unbind()
    logprobs, values = tensors[0].requires_grad_(), tensors[1].requires_grad_()
    old_logprobs, advantages, old_values, returns = tensors[2:]
    mask = torch.rand(shape, device=device) > 0.3

    def backward(loss):
        return torch.autograd.grad(loss, [logprobs, values])

    def ours():
        others = {"values": values, "old_values": old_values, "returns": returns}
        return backward(kernels.ppo_loss(logprobs, old_logprobs, advantages, mask, **others).loss)

    def eager():
        return backward(plain(logprobs, old_logprobs, advantages, mask, values, old_values, returns))

    measure(f"{list(shape)}", ours, eager=eager)
