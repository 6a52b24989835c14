"""What goes wrong in the middle of training ends it: no weight is made of a wrong value, and no error is swallowed."""

from __future__ import annotations

import os

import pytest
import torch

import fastrlhf
from fastrlhf.memory import disk
from fastrlhf.memory.disk import TierError
from tests.support.offloaded import adamw, assert_same, net, train, weights

SMALL = {"device_memory": 30_000, "chunk_size": 2_000}


@pytest.fixture
def run(tmp_path):
    """A model that has trained for a step, its optimizer, its disk's file, and a checkpoint of both."""
    model = net()
    optimizer = fastrlhf.offload(model, adamw(model), disk=tmp_path, **SMALL)
    train(model, optimizer, steps=1)
    torch.save([weights(model), optimizer.state_dict()], tmp_path / "checkpoint")
    return model, optimizer, optimizer.manager._disk._file


def goes_on(folder):
    """Training goes on from the checkpoint to what it would have come to."""

    def resumed():
        model = net(seed=7)
        optimizer = fastrlhf.offload(model, adamw(model))
        state, moments = torch.load(folder / "checkpoint")
        model.load_state_dict(state)
        optimizer.load_state_dict(moments)
        train(model, optimizer, steps=1)
        return weights(model)

    assert_same(resumed(), resumed())


def test_a_file_cut_short_ends_training(run, tmp_path):
    model, optimizer, file = run
    optimizer.manager.residency.settle()
    os.ftruncate(file._descriptor, 100)
    with pytest.raises(TierError, match="cut short"):
        train(model, optimizer, steps=1)
    with pytest.raises(TierError, match="cut short"):
        model(torch.arange(6)[None])
    with pytest.raises(TierError, match="cut short"):
        weights(model)
    goes_on(tmp_path)


@pytest.mark.parametrize("call", ["preadv", "pwritev"])
@pytest.mark.parametrize("after", [0, 3, 10])
def test_a_copy_that_fails_in_the_middle_ends_training(run, tmp_path, monkeypatch, call, after):
    model, optimizer, _ = run
    whole, calls = getattr(os, call), []

    def fails(descriptor, buffers, offset):
        calls.append(offset)
        if len(calls) <= after:
            return whole(descriptor, buffers, offset)
        if len(calls) == after + 1:
            return whole(descriptor, [buffers[0][: buffers[0].nbytes // 2]], offset)
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(disk.os, call, fails)
    with pytest.raises(TierError, match="Input/output error"):
        for _ in range(3):
            train(model, optimizer, steps=1)
    monkeypatch.undo()
    with pytest.raises(TierError, match="Input/output error"):
        train(model, optimizer, steps=1)
    goes_on(tmp_path)


def test_a_backward_that_failed_leaves_nothing_on_the_device():
    """As after an out-of-memory error of the user's own code, which goes on with a smaller batch."""
    results = []
    for fails in (False, True):
        model = net()
        optimizer = fastrlhf.offload(model, adamw(model), host_memory="1MB", **SMALL)
        if fails:
            fail_in_the_middle(model)
            optimizer.zero_grad()
        train(model, optimizer)
        results.append(weights(model))
        assert not any(chunk.parameters.pins for chunk in optimizer.manager.chunks)
    assert_same(*results)


def fail_in_the_middle(model):
    hidden = []
    hook = model.layers[2].register_forward_hook(lambda *args: hidden.append(args[2]))
    loss = model(torch.arange(6)[None]).sum()
    hook.remove()

    def fail(gradient):
        raise ValueError("no")

    hidden[0].register_hook(fail)
    with pytest.raises(ValueError, match="no"):
        loss.backward()


def test_a_forward_that_failed_leaves_nothing_on_the_device():
    model = net()
    optimizer = fastrlhf.offload(model, adamw(model), host_memory="1MB", **SMALL)
    for tokens in (torch.full((1, 3), 99), torch.zeros(1, 3)):
        with pytest.raises((IndexError, RuntimeError)):
            model(tokens)
    assert not any(chunk.parameters.pins for chunk in optimizer.manager.chunks)
    train(model, optimizer, steps=1)
