"""The simulated accelerator without values: the books of a run with them, and no memory."""

from __future__ import annotations

import resource

import pytest
import torch
from torch import nn

from fastrlhf import kernels
from fastrlhf.device import simulated
from fastrlhf.memory.adamw import AdamW


@pytest.fixture
def device():
    with simulated.registered(values=False) as ledger:
        yield ledger


def test_integers_and_booleans_have_values_and_floats_are_zero_where_they_are_wanted(device):
    tokens = torch.tensor([3, 1, 2], device="sim")
    assert (tokens + 1).tolist() == [4, 2, 3] and (tokens > 1).tolist() == [True, False, True]
    assert tokens.cumsum(0).max().item() == 6
    weights = torch.randn(4, 5).to("sim")
    assert weights.cpu().tolist() == torch.zeros(4, 5).tolist()
    assert weights.sum().item() == 0 and bool(weights.isfinite().all())
    assert weights.argmax(1).tolist() == [0] * 4
    assert torch.allclose(weights, weights)
    assert weights[tokens].shape == (3, 5) and weights[:3][tokens > 1].shape == (2, 5)
    assert tokens.float().mul(0.5).long().tolist() == [0, 0, 0]
    assert weights.new_tensor([1, 2]).dtype == torch.float32


@pytest.mark.parametrize("rows", [True, False])
def test_a_mask_selects_as_many_as_it_has(device, rows):
    mask = torch.tensor([rows, True, False], device="sim")
    chosen = torch.randn(3, 2).to("sim")[mask]
    assert chosen.shape == (1 + rows, 2)
    filled = torch.zeros(3, 2, device="sim").index_put((mask.nonzero(as_tuple=True)[0],), chosen)
    assert filled.shape == (3, 2)


def step() -> None:
    torch.manual_seed(0)
    embed, norm, up, head = nn.Embedding(11, 8), nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 11)
    model = nn.ModuleList([embed, norm, up, head]).to("sim")
    optimizer = AdamW(model.parameters())
    tokens = torch.randint(11, (3, 7)).to("sim")
    for _ in range(2):
        query = norm(embed(tokens))[:, None]
        attended = nn.functional.scaled_dot_product_attention(query, query, query, is_causal=True)[:, 0]
        hidden = torch.tanh(up(attended)).flatten(0, 1)
        logprobs = kernels.linear_logprob(hidden, head.weight, tokens.flatten(), bias=head.bias).logprobs
        (-logprobs.mean()).backward()
        optimizer.step(grad_norm=torch.linalg.vector_norm(up.weight.grad), max_norm=1.0)
        optimizer.zero_grad()


def test_the_books_are_those_of_a_step_with_values():
    books = []
    for values in (True, False):
        with simulated.registered(values=values, profile="a100-40") as ledger:
            step()
            books.append(
                (ledger.launches, ledger.cost, ledger.peak, ledger.to_device, ledger.timeline.seconds)
            )
    assert books[0] == books[1]
    assert books[0][0]["linear_logprob_backward"] == 2


def test_a_terabyte_takes_no_memory(device):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    weight = torch.empty(500_000, 500_000, device="sim")
    product = weight @ weight
    pinned = torch.zeros(10**10, dtype=torch.uint8, pin_memory=True)
    pinned.view(torch.float32).copy_(product.flatten()[: 25 * 10**8], non_blocking=True)
    device.streams.synchronize()
    assert device.live == 2 * 10**12 and device.to_host == 10**10
    assert pinned.is_pinned()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_adam_of_the_host_is_booked_and_not_computed():
    with simulated.registered(values=False, profile="a100-40") as ledger:
        flats = [torch.zeros(1000, pin_memory=True) for _ in range(4)]
        flats[1] += 1
        kernels.adamw(*flats, lr=1.0, step=1)
        assert ledger.timeline.busy["host"] > 0
        assert flats[0].abs().sum() == 0


def test_an_operation_that_gives_something_is_computed_on_the_host(device):
    weight = torch.tensor([2.0, 2.0])
    assert kernels.rms_norm(torch.ones(1, 2), weight, eps=0.0).tolist() == [[2.0, 2.0]]
