"""Copies that do not block, on the simulated device: they land no sooner than a GPU promises."""

from __future__ import annotations

from threading import Thread

import pytest
import torch

from fastrlhf.device.ledger import HostWaitError

HOST = torch.arange(4.0)


@pytest.fixture(autouse=True)
def registered(device):
    """All of this needs sim:0."""


def to_sim(tensor=HOST):
    return tensor.to("sim", non_blocking=True)


def test_a_copy_lands_before_the_next_kernel_of_its_stream(device):
    with device.step():
        x = to_sim()
        assert x.elem.isnan().all(), "under way"
        y = x + 1
    assert y.tolist() == [1, 2, 3, 4]
    assert device.to_device == 16


def test_the_source_is_read_when_the_copy_lands():
    buffer = HOST.clone()
    x = to_sim(buffer)
    buffer.zero_()  # too soon: nobody has waited
    assert (x + 1).tolist() == [1, 1, 1, 1]


def test_another_stream_sees_poison_until_it_waits_for_the_event(device):
    side, event = torch.sim.Stream(), torch.sim.Event()
    with device.step():
        with torch.sim.stream(side):
            x = to_sim()
            event.record()
        assert torch.sim.current_stream() is not side
        assert (x + 1).elem.isnan().all(), "the main stream has not waited"
        torch.sim.current_stream().wait_event(event)
        y = x + 1
    assert y.tolist() == [1, 2, 3, 4]


def test_an_event_covers_what_was_enqueued_before_it():
    side, event = torch.sim.Stream(), torch.sim.Event()
    with torch.sim.stream(side):
        first = to_sim()
        side.record_event(event)
        second = to_sim()
    event.wait()
    assert first.elem.tolist() == HOST.tolist() and second.elem.isnan().all()
    assert event.query() and not side.query()
    torch.sim.current_stream().wait_stream(side)
    assert second.elem.tolist() == HOST.tolist() and side.query()


def test_an_event_that_was_never_recorded_waits_for_nothing():
    event = torch.sim.Event()
    event.synchronize()
    assert event.query()


def test_a_copy_to_the_host_is_poison_until_the_host_waits(device):
    event = torch.sim.Event()
    x = torch.ones(3, device="sim")
    with device.step():
        host = x.to("cpu", non_blocking=True)
        event.record()
        x.zero_()  # a kernel of the same stream, after the copy
        flags = torch.zeros(2, dtype=torch.bool).pin_memory().copy_(x[:2] == 1, non_blocking=True)
        assert host.isnan().sum() == 0, "landed before the kernel after it"
        assert flags.all(), "poison"
        with pytest.raises(HostWaitError, match=r"Event\.synchronize makes the host wait"):
            event.synchronize()
    event.synchronize()
    assert host.tolist() == [1, 1, 1]
    torch.sim.synchronize()
    assert flags.tolist() == [False, False]
    assert device.to_host == 12 + 2


def test_memory_that_is_not_pinned_makes_the_host_wait(device):
    x = torch.ones(3, device="sim")
    with device.step(), pytest.raises(HostWaitError, match="a copy to the host makes the host wait"):
        torch.zeros(3).copy_(x, non_blocking=True)
    assert torch.zeros(3).copy_(x, non_blocking=True).tolist() == [1, 1, 1]


def test_to_the_host_without_a_wait_the_values_never_come():
    host = torch.ones(3, device="sim").to("cpu", non_blocking=True)
    assert host.isnan().all()


@pytest.mark.parametrize("recorded", [False, True])
def test_memory_freed_while_another_stream_copies_from_it_is_lost_unless_recorded(recorded):
    side = torch.sim.Stream()
    x = torch.ones(3, device="sim")
    if recorded:
        x.record_stream(side)
    with torch.sim.stream(side):
        host = x.to("cpu", non_blocking=True)
    del x
    side.synchronize()
    assert host.tolist() == [1, 1, 1] if recorded else host.isnan().all()


def test_memory_freed_on_its_own_stream_is_kept_until_the_copy_has_landed(device):
    host = torch.ones(3, device="sim").to("cpu", non_blocking=True)
    assert device.live == 12
    torch.sim.synchronize()
    assert host.tolist() == [1, 1, 1] and device.live == 0


def test_a_stream_is_current_in_every_thread():
    side, seen = torch.sim.Stream(), []
    with torch.sim.stream(side):
        thread = Thread(target=lambda: seen.append(torch.sim.current_stream()))
        thread.start()
        thread.join()
    assert seen == [side]
