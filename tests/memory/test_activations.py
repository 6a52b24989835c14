"""Activations that wait in the host's memory: the bits of those that stay, less memory, copies beside kernels."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import fastrlhf
from fastrlhf.device import simulated
from fastrlhf.device.timeline import COMPUTE, TO_DEVICE, TO_HOST
from fastrlhf.memory import activations
from fastrlhf.memory.copies import Copier
from fastrlhf.memory.meter import CapacityError, Meter
from tests.ppo.test_on_simulated_device import SimulatedConfig
from tests.support import tiny
from tests.support.offloaded import adamw, assert_same, net, train, trained, weights

OPTIONS = {"host_memory": "4MB", "device_memory": 30_000, "chunk_size": 2_000}


@pytest.fixture(autouse=True)
def small_ones_too(monkeypatch):
    monkeypatch.setattr(activations, "SMALLEST", 500)


class Checkpointed(nn.Module):
    """The model with its layers computed again in the backward."""

    def __init__(self, model, reentrant=False):
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, tokens):
        hidden = self.model.embed(tokens) * 1.0
        for layer in self.model.layers:
            hidden = checkpoint(layer, hidden, use_reentrant=self.reentrant)
        return self.model.head(self.model.norm(hidden))


WRAPPED = {
    "all kept": lambda model: model,
    "checkpointed": Checkpointed,
    "checkpointed, reentrant": lambda model: Checkpointed(model, reentrant=True),
}


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("wrap", WRAPPED)
def test_not_a_bit_changes(wrap, prefetch):
    results = []
    with simulated.registered():
        for offload_activations in (False, True):
            model = WRAPPED[wrap](net())
            options = {**OPTIONS, "prefetch": prefetch, "offload_activations": offload_activations}
            optimizer = fastrlhf.offload(model, adamw(model), device="sim", **options)
            losses = train(model, optimizer, "sim", steps=3)
            results.append((weights(model), losses))
            moved = optimizer.manager.host_meter.moved_in
            del optimizer, model
        assert results[0][1] == results[1][1]
        assert_same(results[1][0], results[0][0])
        assert moved > 0


def deep(blocks=12, width=64):
    """Layers whose activations are larger than their weights."""
    torch.manual_seed(0)
    return Checkpointed(net(width=width, blocks=blocks))


def two_steps(device, between=lambda: None, **options):
    """Two steps of 1,024 tokens; gives the manager."""
    model = deep()
    optimizer = fastrlhf.offload(model, adamw(model), device=device, **options)
    tokens = torch.zeros(4, 256, dtype=torch.int64).to(device)
    for _ in range(2):
        between()
        model(tokens).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return optimizer.manager


def test_the_device_holds_a_few_of_them_and_the_host_the_others():
    one = 4 * 256 * 64 * 4
    peaks, books = [], []
    for offload_activations in (False, True):
        with simulated.registered() as device:
            manager = two_steps("sim", prefetch=1, offload_activations=offload_activations)
            peaks.append(device.peak)
            books.append((manager.host_meter.held, manager.host_meter.moved_in, manager.host_meter.moved_out))
            del manager
    # of 12 inputs and what norm and head save, at most two on their way, one in use and one ahead are there
    assert peaks[1] < peaks[0] - 8 * one
    held, moved_in, moved_out = (after - before for before, after in zip(*books, strict=True))
    assert 10 * one <= held <= 18 * one, "once for both steps: buffers are used again"
    assert 2 * 10 * one <= moved_out <= moved_in <= 2 * 18 * one


def test_transfers_lie_beside_kernels_on_the_timeline():
    with simulated.registered(profile="a100-40") as device:
        manager = two_steps("sim", device.timeline.reset, offload_activations=True)
        lanes = {
            lane: [(i.start, i.end) for i in device.timeline.intervals if i.lane == lane]
            for lane in (COMPUTE, TO_DEVICE, TO_HOST)
        }
        stalled, busy = device.timeline.stalled, device.timeline.busy
        del manager
    for lane in (TO_DEVICE, TO_HOST):
        copies = [span for span in lanes[lane] if span[1] - span[0] > 1e-6]
        beside = [
            any(start < done and end > began for start, end in lanes[COMPUTE]) for began, done in copies
        ]
        assert len(copies) > 10 and sum(beside) > 0.7 * len(copies), lane
    assert stalled < 0.5 * (busy[TO_DEVICE] + busy[TO_HOST])


def test_what_several_operations_keep_is_sent_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(64, 64), nn.Linear(64, 64)])

        def forward(self, x):
            return self.layers[0](x).square().sum() + self.layers[1](x).square().sum()

    with simulated.registered():
        model = Twice()
        options = {"device": "sim", "host_memory": "4MB", "offload_activations": True}
        optimizer = fastrlhf.offload(model, adamw(model), **options)
        model(torch.ones(100, 64).to("sim")).backward()
        one = 100 * 64 * 4
        assert optimizer.manager.host_meter.moved_in == 3 * one, "x, and both results that are squared"
        del optimizer, model


def test_a_graph_that_is_kept_is_gone_through_twice():
    with simulated.registered():
        model = Checkpointed(net())
        optimizer = fastrlhf.offload(model, adamw(model), device="sim", **OPTIONS, offload_activations=True)
        loss = model(torch.arange(10)[None].repeat(3, 1).to("sim")).square().sum()
        found = []
        for retain_graph in (True, False):
            optimizer.zero_grad()
            loss.backward(retain_graph=retain_graph)
            with optimizer.manager.gradient(model.model.embed.weight) as gradient:
                found.append(gradient.cpu())
        assert torch.equal(*found) and found[0].any()
        del optimizer, model, loss


def test_a_graph_that_is_dropped_leaves_no_copy_under_way():
    """It would land in memory that is somebody else's by then."""
    with simulated.registered():
        copier = Copier(torch.device("sim", 0))
        kept = activations.Activations(copier, Meter("device"), Meter("host"), prefetch=2)
        layers = [torch.full((200,), float(i)).to("sim") for i in range(6)]
        saved = [kept._pack(layer) for layer in layers]
        assert kept._unpack(saved.pop(3)).cpu().tolist() == [3.0] * 200
        assert not copier._inbound.query(), "two more are on their way"
        saved.clear()
        assert copier._inbound.query()


def test_what_is_changed_in_place_on_its_way_is_noticed():
    class Careless(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(16, 16) for _ in range(6))

        def forward(self, x):
            for layer in self.layers:
                x = torch.sin(layer(x))
                kept = x.cos()  # saves x
                x.mul_(2)
                x = x + kept
            return x

    with simulated.registered():
        model = Careless()
        fastrlhf.offload(model, adamw(model), device="sim", host_memory="4MB", offload_activations=True)
        with pytest.raises(RuntimeError, match="modified in place while it was on its way"):
            model(torch.ones(20, 16).to("sim"))


def test_the_host_says_where_it_has_no_room():
    with simulated.registered():
        model = net()
        options = {**OPTIONS, "host_memory": 100_000, "offload_activations": True}
        optimizer = fastrlhf.offload(model, adamw(model), device="sim", **options)
        with pytest.raises(CapacityError, match="the host tier may hold 100 kB"):
            model(torch.zeros(64, 10, dtype=torch.int64).to("sim"))
        model(torch.zeros(1, 2, dtype=torch.int64).to("sim")).sum().backward()
        del optimizer, model


def test_it_is_refused_where_the_host_is_the_device():
    with pytest.raises(ValueError, match=r"the device is the CPU.* Gradient checkpointing"):
        trained(offload_activations=True)
    with pytest.raises(ValueError, match="set device_memory too"):
        tiny.tiny_config("run", offload_activations=True)


def test_ppo_trains_to_the_same_bits(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "PPOConfig", SimulatedConfig)
    states, moved = [], []
    for offload_activations in (False, True):
        with simulated.registered():
            trainer = tiny.tiny_trainer(
                tmp_path / str(offload_activations),
                total_episodes=16,
                device_memory="100kB",
                host_memory="4MB",
                offload_activations=offload_activations,
            )
            trainer.train()
            states.append({name: value.cpu() for name, value in trainer.model.state_dict().items()})
            moved.append(trainer.optimizer.manager.host_meter.moved_in)
            del trainer
    assert moved[1] > moved[0]
    assert_same(*states)
