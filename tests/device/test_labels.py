"""What holds the memory of a training step, worked out by hand for a small model (float32: 4 bytes)."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from fastrlhf.device import simulated
from fastrlhf.device.holdings import by_kind
from fastrlhf.device.labels import hold, labelled

WIDTH, INNER, ROWS = 8, 32, 100
WEIGHTS = 4 * 2 * WIDTH * INNER  # of one layer


class Layer(nn.Module):
    """A residual layer."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(WIDTH, INNER, bias=False)
        self.down = nn.Linear(INNER, WIDTH, bias=False)

    def forward(self, x):
        return x + self.down(self.up(x).relu() + 1)


class Model(nn.Module):
    """Two layers."""

    def __init__(self, checkpointing=False):
        super().__init__()
        self.layers = nn.ModuleList([Layer(), Layer()])
        self.checkpointing = checkpointing

    def forward(self, x):
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if self.checkpointing else layer(x)
        return x


def train(model, rows=ROWS):
    """A step of Adam; returns what it keeps."""
    optimizer = torch.optim.Adam(model.parameters())
    batch = torch.ones(rows, WIDTH, device="sim")
    model(batch).sum().backward()
    optimizer.step()
    return optimizer, batch


def of_kind(kind, holders):
    return {holder: size for holder, size in holders.items() if holder.startswith(kind)}


def test_at_the_optimizers_step_parameters_gradients_and_state_are_held(device):
    model = Model().to("sim")
    with labelled(model):
        kept = train(model, rows=1)
    kinds = by_kind(device.at_peak)
    assert kinds.total() == device.peak
    passing = kinds.pop("temporaries")
    assert passing > 0 and device.at_peak["temporaries / optimizer"] == passing
    assert kinds == {
        "parameters": 2 * WEIGHTS,
        "gradients": 2 * WEIGHTS,
        "optimizer": 2 * 2 * WEIGHTS,
        "other": 4 * WIDTH,  # the batch
    }
    names = {f"layers.{layer}.{part}" for layer in (0, 1) for part in ("up", "down")}
    for kind in ("parameters", "gradients", "optimizer"):
        assert set(of_kind(kind, device.holders)) == {f"{kind} / {name}" for name in names}
    del kept


def test_in_the_backward_activations_are_held_by_their_module(device):
    model = Model().to("sim")
    with labelled(model):
        train(model)
    assert by_kind(device.at_peak).total() == device.peak
    assert of_kind("activations", device.at_peak) == {
        "activations / layers.0": 2 * INNER * ROWS * 4 + WIDTH * ROWS * 4,  # relu, relu + 1, and the sum
        "activations / layers.1": 2 * INNER * ROWS * 4,  # of its sum nobody needs the values
    }
    assert of_kind("gradients", device.at_peak) == {"gradients / layers.1.down": WEIGHTS // 2}
    assert of_kind("temporaries", device.at_peak) == {"temporaries / backward": INNER * ROWS * 4}


def test_activations_that_are_computed_again_are_held_by_the_layer_that_does(device):
    model = Model(checkpointing=True).to("sim")
    with labelled(model):
        train(model)
    assert by_kind(device.at_peak).total() == device.peak
    assert of_kind("activations", device.at_peak) == {"activations / layers.0": 2 * INNER * ROWS * 4}


def test_without_gradients_nothing_is_an_activation(device):
    model = Model().to("sim")
    with labelled(model, "reference"), torch.no_grad():
        out = model(torch.ones(ROWS, WIDTH, device="sim"))
    assert not of_kind("activations", device.at_peak + device.holders)
    assert of_kind("temporaries / reference.layers.0", device.at_peak)
    assert device.holders["parameters / reference.layers.1.up"] == WEIGHTS // 2
    del out


def test_who_knows_better_says_so_even_afterwards(device):
    model = nn.Linear(4, 4, bias=False).to("sim")
    with labelled(model):
        out = model(torch.ones(2, 4, device="sim"))
        assert device.holders["activations / Linear"] == 32
        hold("cache / keys", [out, None, torch.ones(3)])
    assert (device.at_peak["cache / keys"], device.at_peak["activations / Linear"]) == (32, 0)


def test_tensors_that_move_later_are_named_at_the_next_call(device):
    model = nn.Linear(4, 4, bias=False)
    with labelled(model):
        model.to("sim")
        model(torch.ones(2, 4, device="sim"))
    assert device.holders["parameters / Linear"] == 64


def test_errors_leave_no_label_behind():
    model = nn.Linear(4, 4, bias=False)
    with simulated.registered(capacity=250) as device:
        model.to("sim")
        optimizer = torch.optim.Adam(model.parameters())
        with pytest.raises(torch.OutOfMemoryError), labelled(model):
            model(torch.ones(2, 4, device="sim")).sum().backward()
            with pytest.raises(RuntimeError, match="same device"):
                model(torch.ones(2, 4))
            optimizer.step()
        device.capacity = 1000
        after = torch.empty(1, device="sim")
        assert "aten::empty [1] float32" in device.holders
        model(torch.ones(2, 4, device="sim"))
        assert not of_kind("activations", device.holders), "the hooks are gone"
        del after
