"""Numbers as people write them."""

import math

import pytest

from fastrlhf.report.units import clock, duration, finite, number, share


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0.00"),
        (0.5162, "0.52"),
        (-0.42, "-0.42"),
        (0.09, "0.090"),
        (0.0999, "0.10"),
        (9.999, "10.0"),
        (12.34, "12.3"),
        (99.99, "100"),
        (1480.4, "1,480"),
        (3.1e-6, "3.1e-06"),
        (2.5e9, "2.50e+09"),
        (math.nan, "nan"),
        (math.inf, "inf"),
    ],
)
def test_number(value, written):
    assert number(value) == written


@pytest.mark.parametrize(
    ("seconds", "words", "digits"),
    [
        (8.44, "8.4 s", "0:08"),
        (59.96, "1 min 00 s", "1:00"),
        (725, "12 min 05 s", "12:05"),
        (3599.7, "1 h 00 min", "1:00:00"),
        (8040, "2 h 14 min", "2:14:00"),
    ],
)
def test_durations(seconds, words, digits):
    assert duration(seconds) == words
    assert clock(seconds) == digits


def test_a_clock_does_not_run_below_zero():
    assert clock(-3) == "0:00"


def test_share():
    assert share(0.834) == "83 %"
    assert share(math.nan) == "nan"


@pytest.mark.parametrize(
    "value", [None, math.nan, math.inf, "1", True, [], 10**400], ids=lambda v: str(v)[:8]
)
def test_what_is_no_finite_number_is_none(value):
    assert finite(value) is None


def test_finite_numbers_pass():
    assert finite(2) == 2.0
    assert finite(-0.5) == -0.5
