"""The step of a GPU, as far as a CPU can tell: no host wait, graphs for a few numbers of rows, autocast or none."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.device import simulated
from fastrlhf.device.streams import Event
from fastrlhf.generation import engine as engines
from fastrlhf.generation.batches import generate
from fastrlhf.generation.cache import block_bytes
from fastrlhf.generation.eager_step import EagerStep, GraphedStep, bucket_of
from fastrlhf.generation.engine import Engine
from fastrlhf.kernels import using
from fastrlhf.models.describe import describe
from tests.generation.test_batching import requests
from tests.support.toy import EOS, PAD, toy_model


@pytest.fixture
def device():
    with simulated.registered() as ledger:
        yield ledger


def batch():
    ids = torch.tensor([[PAD, 4, 5], [7, 8, 9], [PAD, PAD, 1]])
    return ids, ids != PAD


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize("options", [{}, {"repetition_penalty": 1.4, "min_new_tokens": 3}], ids=str)
def test_an_accelerator_generates_the_cpus_tokens(device, shape, options):
    options |= {"max_new_tokens": 7, "pad_token_id": PAD, "stop_token_ids": (EOS, 3), "seed": 2}
    expected = generate(toy_model(shape), *batch(), **options)
    # the head's tie to the embedding does not survive the simulated move
    model = toy_model(shape).to("sim")
    model.tie_weights()
    found = generate(model, *(tensor.to("sim") for tensor in batch()), **options)
    assert found.tokens.device.type == "sim"
    assert torch.equal(found.tokens.cpu(), expected.tokens)
    torch.testing.assert_close(found.logprobs.cpu(), expected.logprobs, rtol=0, atol=1e-5)


def engine_on(device, **settings):
    model = toy_model().to("sim")
    model.tie_weights()
    return Engine(describe(model), requests(**settings), max_rows=4)


def test_a_step_makes_no_host_wait(device):
    engine = engine_on(device, repetition_penalty=1.2)
    engine._admit()
    with device.step():
        for _ in range(3):
            engine._step(4)


@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.4, "min_new_tokens": 3}], ids=str)
def test_the_host_waits_for_what_was_drawn_and_nothing_else(device, monkeypatch, settings):
    """Rows that come, go and change their settings make no wait either, and nothing goes up from pageable memory."""
    engine = engine_on(device, **settings)
    steps, blocking = [], []
    step, copy = engine._step, device.copy
    engine._step = lambda count: steps.append(count) or step(count)
    monkeypatch.setattr(device, "copy", lambda *a, **how: blocking.append(how) or copy(*a, **how))
    waits = device.waits.copy()
    with device.step():
        for _ in engine.run():
            pass
    assert set(device.waits - waits) == {"which tokens the rows drew"}
    assert len(steps) - 1 <= (device.waits - waits).total() <= len(steps)
    assert {how["to_device"] for how in blocking} == {False, True}
    assert all(how["pinned"] and not how["blocking"] for how in blocking)


def test_a_gpu_has_its_next_step_when_the_host_waits_for_one(monkeypatch):
    busy = []
    synchronize = Event.synchronize

    with simulated.registered(profile="a100-80") as device:
        engine = engine_on(device)

        def watched(event):
            busy.append(device.streams.current.ready > event.time)
            synchronize(event)

        monkeypatch.setattr(Event, "synchronize", watched)
        for _ in engine.run():
            pass
    # but where all rows are known to end with a step
    assert busy.count(False) <= 2 < busy.count(True)


@pytest.mark.parametrize("blocks", [6, 8, 10, 30])
def test_graphs_for_a_few_numbers_of_rows(monkeypatch, blocks):
    """Rows that fill a graph up write into the spare block, and change nobody's tokens, also where a small cache keeps
    requests waiting and a row's blocks are soon another's."""
    captured = []

    def capture(function):
        captured.append(function)
        return function

    budget = blocks * block_bytes(2, 2, 4, torch.float32)
    with using("reference"):
        given, expected = requests(), requests()
        for _ in Engine(describe(toy_model()), expected, max_rows=9).run():
            pass
        monkeypatch.setattr(engines, "EagerStep", lambda *args: GraphedStep(EagerStep(*args), 9, capture))
        for _ in Engine(describe(toy_model()), given, max_rows=9, cache_bytes=budget).run():
            pass
    assert [each.tokens for each in given] == [each.tokens for each in expected]
    assert 1 < len(captured) <= 5


def test_rows_that_fill_a_graph_up_leave_the_blocks_of_others_alone():
    """Also after more steps than there are positions."""
    with using("reference"):
        engine = Engine(describe(toy_model()), requests(), max_rows=4)
        engine._admit()
        left = engine._active[3].blocks
        engine._leave(3)
        before = engine.cache.keys[:, left].nan_to_num()  # what nothing was written to holds anything
        for _ in range(60):
            engine._step(4)
    assert torch.equal(engine.cache.keys[:, left].nan_to_num(), before)


def test_buckets():
    assert [bucket_of(count, 20) for count in (1, 2, 3, 4, 5, 8, 9, 16, 17)] == [1, 2, 4, 4, 8, 8, 16, 16, 20]
    assert bucket_of(3, 3) == 3


def test_autocast_is_not_heeded():
    options = {"max_new_tokens": 7, "pad_token_id": PAD, "seed": 2}
    with using("reference"):
        expected = generate(toy_model("gpt2"), *batch(), **options)
        with torch.autocast("cpu", torch.bfloat16):
            found = generate(toy_model("gpt2"), *batch(), **options)
    assert torch.equal(found.logprobs, expected.logprobs)


@pytest.mark.gpu
def test_on_a_gpu():
    expected = generate(toy_model(), *batch(), max_new_tokens=20, pad_token_id=PAD, temperature=0.0)
    found = generate(
        toy_model().cuda(),
        *(tensor.cuda() for tensor in batch()),
        max_new_tokens=20,
        pad_token_id=PAD,
        temperature=0.0,
    )
    assert torch.equal(found.tokens.cpu(), expected.tokens)
