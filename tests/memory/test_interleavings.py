"""Asked in any order, with copies made at any time, a manager gives what one that moves nothing gives."""

from __future__ import annotations

import tempfile
from contextlib import nullcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fastrlhf
from fastrlhf.device import simulated
from fastrlhf.memory import activations, disk
from fastrlhf.memory.disk import DiskFile
from fastrlhf.memory.placement import StaticPlacement
from tests.support.disk_schedule import TouchedError, schedule_disk
from tests.support.offloaded import VOCABULARY, adamw, net, weights

MEMORY = st.sampled_from(
    [
        {"device_memory": 30_000, "disk": True},
        {"device_memory": 30_000, "host_memory": "1MB"},
        {"device_memory": 30_000, "host_memory": 50_000, "disk": True},
        {"device_memory": 60_000, "host_memory": 30_000, "disk": True},
    ]
)
PLACEMENTS = st.sampled_from(["auto", StaticPlacement(), StaticPlacement(parameters=0.25, optimizer=0.1)])
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["forward", "backward", "backward", "step", "step", "zero", "write", "read", "load"]),
        st.integers(0, 3),
    ),
    min_size=4,
    max_size=14,
)


def perform(operations, device, **options):
    """The numbers that come of them, in order, and the weights at the end."""
    model = net()
    optimizer = fastrlhf.offload(model, adamw(model), device=device, **options)
    seen = []
    for operation, number in operations:
        tokens = (torch.arange(12).view(2, 6) * (number + 1) % VOCABULARY).to(device)
        layer = model.layers[number]
        if operation == "forward":
            with torch.no_grad():
                seen.append(model(tokens).cpu())
        elif operation == "backward":
            loss = model(tokens).square().mean()
            loss.backward()
            seen.append(loss.detach().cpu())
        elif operation == "step":
            seen.append(optimizer.clip_grad_norm_(0.5).cpu())
            optimizer.step()
        elif operation == "zero":
            optimizer.zero_grad()
        elif operation == "write":
            for _ in range(2):  # the second while the first may be on its way home
                with optimizer.manager.use(layer.up, writes=True), torch.no_grad():
                    layer.up.weight.mul_(0.5)
        elif operation == "read":
            seen.append(optimizer.manager.values(layer.down.weight).cpu().clone())
        elif operation == "load":
            optimizer.load_state_dict(optimizer.state_dict())
    return seen, weights(model)


@pytest.mark.slow
@settings(deadline=None, max_examples=60)
@given(
    OPERATIONS, MEMORY, PLACEMENTS, st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 1 << 16)
)
def test_any_order_gives_what_moving_nothing_gives(
    operations, memory, placement, prefetch, on_device, send_activations, seed
):
    device = "sim" if on_device else "cpu"
    with (
        tempfile.TemporaryDirectory() as folder,
        pytest.MonkeyPatch.context() as patch,
        simulated.registered() if on_device else nullcontext(),
    ):
        expected = perform(operations, device, chunk_size="1GB")
        schedule_disk(patch, seed)
        patch.setattr(activations, "SMALLEST", 100)
        options = {**memory, "placement": placement, "prefetch": prefetch, "chunk_size": 2_000}
        if memory.get("disk"):
            options["disk"] = folder
        if on_device and memory.get("host_memory") == "1MB":
            options["offload_activations"] = send_activations
        if placement != "auto":
            options["device_memory"] = 60_000
        found = perform(operations, device, **options)
        for one, other in zip(found[0], expected[0], strict=True):
            assert torch.equal(one, other)
        assert all(torch.equal(found[1][name], value) for name, value in expected[1].items())


def test_the_worker_notices_what_is_touched_too_early(tmp_path, monkeypatch):
    for touched, work in (("written", "write"), ("read", "read")):
        for seed in range(20):
            schedule_disk(monkeypatch, seed)
            file = DiskFile(tmp_path, 4096)
            memory = torch.zeros(10)
            job = getattr(file, work)(memory, 0)
            if disk.Future.done(job):
                continue
            memory.fill_(1)
            with pytest.raises(TouchedError, match=f"touched before it was {touched}"):
                job.result()
            break
        else:
            raise AssertionError("never late")
