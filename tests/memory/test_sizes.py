"""Sizes in words, and the books."""

from __future__ import annotations

import pytest

from fastrlhf.memory.meter import CapacityError, Meter, table
from fastrlhf.memory.sizes import format_size, parse_size


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ("6GB", 6 * 10**9),
        ("1.5 gb", 1_500_000_000),
        ("512MiB", 512 * 2**20),
        ("100", 100),
        (4096, 4096),
        ("0", 0),
        (2.5e3, 2500),
    ],
)
def test_a_size_is_read(size, expected):
    assert parse_size("device_memory", size) == expected


@pytest.mark.parametrize("size", ["6 gigs", "GB", "-1GB", "", -5, float("inf"), float("nan"), None, True])
def test_what_is_not_a_size_is_refused_by_name(size):
    with pytest.raises(ValueError, match="device_memory is "):
        parse_size("device_memory", size)


@pytest.mark.parametrize("size", [640, 12_300, 45_600_000, 1_500_000_000])
def test_a_size_that_is_shown_can_be_read(size):
    assert parse_size("size", format_size(size)) == size


def test_a_meter_counts_held_peak_and_moved():
    meter = Meter("host", 100)
    meter.hold(60)
    meter.hold(40)
    meter.release(70)
    assert (meter.held, meter.peak, meter.fits(70), meter.fits(71)) == (30, 100, True, False)
    with pytest.raises(CapacityError, match="the host tier may hold 100 B and holds 30 B: 71 B more"):
        meter.hold(71)
    meter.moved_in = 12_000
    assert "12 kB" in table([meter])
    meter.reset()
    assert (meter.held, meter.peak, meter.moved_in) == (30, 30, 0)
