"""The simulated device's clock, on a card of round numbers: a float each second from memory and over the link."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from threading import Thread

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.device import simulated
from fastrlhf.device.profiles import Profile
from fastrlhf.device.timeline import STAGED, Interval, Timeline

CARD = Profile(
    "round",
    capacity=1e9,
    bandwidth=4.0,
    float32=1.0,
    tf32=4.0,
    bfloat16=2.0,
    to_device=4.0,
    to_host=2.0,
    source="none",
    kernel_start=0.0,
    host_issue=0.0,
    host_bandwidth=8.0,
)


@pytest.fixture
def clock() -> Iterator[Timeline]:
    """The timeline of sim:0 on that card."""
    with simulated.registered(profile=CARD, poison=False) as device:
        yield device.timeline


def zeros(number: int) -> torch.Tensor:
    """A kernel of `number` seconds, the one that fills them."""
    return torch.zeros(number, device="sim")


def pinned(number: int) -> torch.Tensor:
    return torch.zeros(number, pin_memory=True)


def spans(clock: Timeline) -> list[tuple[str, float, float]]:
    return [(interval.lane, interval.start, interval.end) for interval in clock.intervals]


class TestWork:
    def test_a_kernel_takes_the_longer_of_its_bytes_and_its_operations(self, clock):
        x = torch.empty(2, 2, device="sim")
        x + x
        assert clock.intervals == [Interval("compute", "aten::add", 0, 12)]
        clock.reset()
        x @ x
        assert clock.seconds == 2 * 2 * 2 * 2, "longer than the 12 seconds of its bytes"
        clock.reset()
        x.to(torch.bfloat16) @ x.to(torch.bfloat16)
        assert clock.intervals[-1].end - clock.intervals[-1].start == 16 / 2, "longer than 6 seconds"

    def test_tf32_serves_where_pytorch_allows_it_but_not_our_kernels(self, clock):
        x, targets = torch.ones(8, 8, device="sim"), torch.arange(8, device="sim")
        clock.reset()
        torch.set_float32_matmul_precision("high")
        try:
            x @ x
            assert clock.seconds == 2 * 8**3 / 4
            clock.reset()
            kernels.linear_logprob(x, x, targets)
            assert clock.seconds > 2 * 8**3
        finally:
            torch.set_float32_matmul_precision("highest")

    def test_our_operations_take_what_they_declare(self, clock):
        x, mask = torch.ones(1, 2, device="sim"), torch.ones(1, 2, device="sim").bool()
        clock.reset()
        kernels.gae(x, x, mask)
        assert clock.seconds == 10 * 2, "operations, longer than the 15 seconds of its bytes"
        assert clock.intervals[0].name == "gae"

    def test_kernels_of_all_streams_share_the_card(self, clock):
        zeros(1)
        with torch.sim.stream(torch.sim.Stream()):
            zeros(2)
        assert spans(clock) == [("compute", 0, 1), ("compute", 1, 3)]

    def test_each_way_has_an_engine_of_its_own(self, clock):
        device, streams = torch.empty(2, device="sim"), [torch.sim.Stream() for _ in range(3)]
        for stream, copy in zip(
            streams,
            (
                lambda: pinned(3).to("sim", non_blocking=True),
                lambda: device.to("cpu", non_blocking=True),
                lambda: pinned(1).to("sim", non_blocking=True),
            ),
            strict=True,
        ):
            with torch.sim.stream(stream):
                copy()
        assert spans(clock) == [("to device", 0, 3), ("to host", 0, 4), ("to device", 3, 4)]
        assert clock.busy == {"to device": 4, "to host": 4}

    def test_work_of_one_stream_is_in_order(self, clock):
        zeros(1)
        copied = pinned(2).to("sim", non_blocking=True)
        copied.zero_()
        assert spans(clock) == [("compute", 0, 1), ("to device", 1, 3), ("compute", 3, 5)]


class TestOverlap:
    def test_a_copy_hides_behind_kernels_that_do_not_need_it(self, clock):
        side, event = torch.sim.Stream(), torch.sim.Event()
        with torch.sim.stream(side):
            copied = pinned(3).to("sim", non_blocking=True)
            event.record()
        zeros(4)
        event.wait()
        copied.zero_()
        assert (clock.seconds, clock.stalled) == (7, 0)

    @pytest.mark.parametrize("wait", ["event", "stream", "same stream"])
    def test_a_kernel_that_needs_it_sooner_stalls(self, clock, wait):
        side, event = torch.sim.Stream(), torch.sim.Event()
        if wait == "same stream":
            side = torch.sim.current_stream()
        zeros(1)
        side.wait_stream(torch.sim.current_stream())
        with torch.sim.stream(side):
            copied = pinned(3).to("sim", non_blocking=True)
            event.record()
        if wait == "event":
            torch.sim.current_stream().wait_event(event)
        elif wait == "stream":
            torch.sim.current_stream().wait_stream(side)
        copied.zero_()
        assert (clock.seconds, clock.stalled, clock.idle) == (7, 3, 0)

    def test_events_tell_the_time(self, clock):
        first, second = torch.sim.Event(enable_timing=True), torch.sim.Event(enable_timing=True)
        zeros(1)
        first.record()
        zeros(2)
        second.record()
        assert first.elapsed_time(second) == 2000


class TestTheHost:
    @pytest.fixture
    def clock(self) -> Iterator[Timeline]:
        with simulated.registered(
            profile=replace(CARD, kernel_start=1.0, host_issue=10.0), poison=False
        ) as device:
            yield device.timeline

    def test_asking_takes_time_and_so_does_starting(self, clock):
        zeros(2)
        zeros(2)
        assert spans(clock) == [("compute", 10, 13), ("compute", 20, 23)]
        assert (clock.idle, clock.stalled) == (10 + 7, 0)

    def test_it_runs_ahead_of_long_kernels(self, clock):
        zeros(99)
        zeros(99)
        assert spans(clock) == [("compute", 10, 110), ("compute", 110, 210)]
        assert clock.now == 20

    @pytest.mark.parametrize(
        "wait",
        [
            lambda x: torch.sim.synchronize(),
            lambda x: torch.sim.current_stream().synchronize(),
            lambda x: x[0].item(),
            lambda x: x[:0].nonzero(),
        ],
    )
    def test_it_waits_until_the_kernels_are_done(self, clock, wait):
        wait(zeros(99))
        assert clock.now >= 110

    def test_it_waits_for_an_event(self, clock):
        event = torch.sim.Event()
        zeros(99)
        event.record()
        zeros(99)
        event.synchronize()
        assert clock.now == 110


class TestPageableMemory:
    SIZE = 2 * STAGED  # too large to be staged at once

    @pytest.mark.parametrize("memory", ["pinned", "pageable"])
    def test_it_is_slower_and_the_host_waits(self, clock, memory):
        source = pinned(self.SIZE // 4) if memory == "pinned" else torch.zeros(self.SIZE // 4)
        source.to("sim", non_blocking=True)
        seconds = self.SIZE / 4 * (1 if memory == "pinned" else 2)
        assert clock.seconds == seconds
        assert clock.now == (0 if memory == "pinned" else seconds)

    def test_a_small_tensor_is_staged(self, clock):
        torch.zeros(4).to("sim", non_blocking=True)
        assert (clock.seconds, clock.now) == (8, 0)

    def test_to_the_host_too(self, clock):
        torch.zeros(4).copy_(torch.empty(4, device="sim"), non_blocking=True)
        assert clock.now == 16

    def test_a_blocking_copy_makes_the_host_wait_and_the_card_stall(self, clock):
        zeros(1)
        pinned(4).to("sim")
        zeros(1)
        assert (clock.now, clock.stalled, clock.idle) == (5, 4, 0)


class TestKernelsOfTheHost:
    x, mask = torch.ones(1, 2), torch.ones(1, 2).bool()

    def test_they_take_the_hosts_bandwidth(self, clock):
        kernels.gae(self.x, self.x, self.mask)
        zeros(1)
        assert clock.intervals == [
            Interval("host", "gae", 0, 7.5),
            Interval("compute", "aten::zero_", 7.5, 8.5),
        ]

    def test_another_thread_has_a_clock_of_its_own(self, clock):
        zeros(9)
        torch.sim.synchronize()
        thread = Thread(target=lambda: kernels.gae(self.x, self.x, self.mask))
        thread.start()
        thread.join()
        zeros(1)
        assert spans(clock) == [("compute", 0, 9), ("host", 9, 16.5), ("compute", 9, 10)]
        assert clock.seconds == 16.5
        clock.advance(16.5)
        assert clock.now == 16.5


def test_a_reset_starts_at_zero_with_nothing_under_way(clock):
    pinned(4).to("sim", non_blocking=True)
    zeros(3)
    clock.reset()
    assert (clock.seconds, clock.intervals, clock.busy.total()) == (0, [], 0)
    zeros(1)
    assert spans(clock) == [("compute", 0, 1)]
