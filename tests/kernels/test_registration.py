"""Plain tensors take a shorter way than PyTorch's dispatcher, to the same place."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastrlhf import kernels
from fastrlhf.kernels import dispatch, registration


class Watching(TorchDispatchMode):
    """Keeps the names of the operations that it sees."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.seen.append(function.name())
        return function(*args, **(kwargs or {}))


def loss_and_gradient(**options):
    generator = torch.Generator().manual_seed(0)
    logprobs, old, advantages = torch.randn(3, 4, 5, generator=generator).unbind()
    logprobs.requires_grad_()
    loss = kernels.ppo_loss(logprobs, old, advantages, torch.ones(4, 5, dtype=torch.bool), **options).loss
    loss.backward()
    return loss.detach(), logprobs.grad


def test_both_ways_give_the_same_bits(monkeypatch):
    short = loss_and_gradient()
    monkeypatch.setattr(registration, "all_plain", lambda args: False)
    assert all(torch.equal(*pair) for pair in zip(short, loss_and_gradient(), strict=True))


def test_a_mode_sees_the_operation():
    with Watching() as mode:
        loss_and_gradient()
    assert "fastrlhf::ppo_loss" in mode.seen


def test_a_mode_of_no_concern_is_not_there_afterwards():
    assert registration.all_plain((torch.ones(2), 1.0, None))


@pytest.mark.parametrize(
    "tensor",
    [torch.ones(2, device="meta"), torch.ones(2).as_subclass(type("Mine", (torch.Tensor,), {}))],
    ids=["meta", "subclass"],
)
def test_other_tensors_take_the_dispatcher(tensor):
    assert not registration.all_plain((torch.ones(2), tensor))


def test_functorch_takes_the_dispatcher():
    seen = []
    torch.vmap(lambda x: seen.append(registration.all_plain((torch.ones(2),))) or x)(torch.ones(3))
    assert seen == [False]


def test_no_gradient_is_kept_where_none_is_wanted():
    mask = torch.ones(4, 5, dtype=torch.bool)
    weights = torch.randn(4, 5, requires_grad=True)
    with torch.no_grad():
        assert not kernels.ppo_loss(weights, weights, weights, mask).loss.requires_grad
    assert kernels.ppo_loss(weights, weights, weights, mask).loss.requires_grad


@pytest.mark.parametrize("operation", dispatch.OPERATIONS)
def test_every_operation_is_registered_here(operation):
    """The dispatcher knows it for every device, and its shapes are known without running it."""
    name = f"fastrlhf::{operation}"
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "CompositeExplicitAutograd")
    assert torch._C._dispatch_has_kernel_for_dispatch_key(name, "Meta")
