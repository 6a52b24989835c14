"""The picture of a step on the simulated clock."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from matplotlib.colors import to_hex
from PIL import Image

from fastrlhf.device.timeline import Interval
from fastrlhf.report.draw_timeline import draw_timeline, merged
from fastrlhf.report.theme import DARK, LIGHT

STEP = [
    Interval("to device", "1 bytes", 0.0, 0.25),
    Interval("compute", "a", 0.25, 0.5),
    Interval("compute", "b", 0.5, 1.0),
]


def drawn(path, intervals=STEP, **options):
    with Image.open(draw_timeline(intervals, path, **options)) as image:
        return np.asarray(image.convert("RGB"))


def columns(picture, color):
    """The columns of pixels in which a colour is seen."""
    wanted = [int(color[place : place + 2], 16) for place in (1, 3, 5)]
    return np.flatnonzero((picture == wanted).all(axis=-1).any(axis=0))


def test_bars_stand_where_their_time_is(tmp_path):
    picture = drawn(tmp_path / "new folder" / "step.png")
    compute, to_device = (columns(picture, color) for color in LIGHT.lines[:2])
    start, end = to_device[0], compute[-1]
    assert abs((compute[0] - start) / (end - start) - 0.25) < 0.01
    assert abs((to_device[-1] - start) / (end - start) - 0.25) < 0.01
    assert len(columns(picture, LIGHT.lines[2])) == 0, "nothing went to the host"


def test_the_host_has_a_lane_only_where_it_worked(tmp_path):
    without = drawn(tmp_path / "a.png")
    picture = drawn(tmp_path / "b.png", [*STEP, Interval("host", "adamw", 0.0, 0.5)])
    assert len(columns(without, LIGHT.lines[3])) == 0 and len(columns(picture, LIGHT.lines[3])) > 0
    assert picture.shape[0] > without.shape[0] and picture.shape[1] == 1600


def test_it_can_be_dark(tmp_path):
    picture = drawn(tmp_path / "a.png", dark=True, title="A $5 step")
    assert to_hex(picture[0, 0] / 255) == DARK.paper


def test_nothing_to_draw_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="intervals is empty"):
        draw_timeline([], tmp_path / "a.png")


def test_neighbours_are_one_bar():
    assert merged([(3, 4), (0, 1), (1.5, 2)], 0.5) == [(0, 2), (3, 4)]
    assert merged([(0, 5), (1, 2)], 0) == [(0, 5)]
