"""The gradient of a tied head joins that of the embeddings as soon as it is known."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fastrlhf
from fastrlhf.device import simulated
from fastrlhf.memory.using import own_leaf, using

VOCABULARY, WIDTH = 4096, 16


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(3))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        hidden = self.embed(tokens)
        for layer in self.layers:
            hidden = hidden + torch.tanh(layer(hidden))
        with using(self.head):
            weight = own_leaf(self.head, self.head.weight)
            return fastrlhf.kernels.linear_logprob(
                hidden.flatten(0, 1), weight, tokens.flatten()
            ).logprobs.mean()


def gradients(device, micro_batches=2, **options):
    torch.manual_seed(0)
    model = Tied()
    optimizer = fastrlhf.offload(model, torch.optim.AdamW(model.parameters()), device=device, **options)
    for _ in range(micro_batches):
        model(torch.randint(VOCABULARY, (2, 5)).to(device)).backward()
    found = []
    for parameter in model.parameters():
        with optimizer.manager.gradient(parameter) as gradient:
            found.append(gradient.cpu().clone())
    return found


def expected(micro_batches=2):
    torch.manual_seed(0)
    model = Tied()
    for _ in range(micro_batches):
        model(torch.randint(VOCABULARY, (2, 5))).backward()
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("micro_batches", [1, 2])
@pytest.mark.parametrize("device_memory", ["2MB", None])
def test_it_is_the_sum_of_both(device_memory, micro_batches, tmp_path):
    found = gradients("cpu", micro_batches, device_memory=device_memory, disk=tmp_path)
    for ours, autograd in zip(found, expected(micro_batches), strict=True):
        torch.testing.assert_close(ours, autograd)


def test_the_device_holds_one_gradient_beside_the_chunk_and_not_three():
    size = 4 * VOCABULARY * WIDTH
    with simulated.registered() as device:
        found = gradients("sim", 1, device_memory="1MB", host_memory="1GB")
        assert device.peak < 3.5 * size, "the weight, its chunk of gradients, and one that is being made"
    for ours, autograd in zip(found, expected(1), strict=True):
        torch.testing.assert_close(ours, autograd)


def test_nobody_asks_for_one_where_there_is_no_gradient_or_no_manager():
    model = Tied()
    assert own_leaf(model.head, model.head.weight) is model.head.weight
    fastrlhf.offload(model, torch.optim.AdamW(model.parameters()))
    assert own_leaf(model.head, model.head.weight) is not model.head.weight
    with torch.no_grad():
        assert own_leaf(model.head, model.head.weight) is model.head.weight
