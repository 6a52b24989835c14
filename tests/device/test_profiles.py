from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fastrlhf.device import simulated
from fastrlhf.device.profiles import PROFILES, profile


def test_every_card_names_its_source():
    assert list(PROFILES) == ["4090", "a100-40", "a100-80", "h100"]
    assert all("NVIDIA" in card.source for card in PROFILES.values())


def test_the_rate_depends_on_the_type():
    card = profile("a100-80")
    assert card.rate(torch.float32) == card.rate(torch.float64) == 19.5e12
    assert card.rate(torch.float32, tf32=True) == 156e12
    assert card.rate(torch.bfloat16) == card.rate(torch.float16, tf32=True) == 312e12


def test_an_unknown_card_is_refused():
    with pytest.raises(ValueError, match="profile 'v100' is not one of 4090, a100-40, a100-80, h100"):
        profile("v100")


def test_the_device_is_as_large_as_the_card_unless_told_otherwise():
    with simulated.registered(profile="4090") as device:
        assert device.capacity == 24e9
    with simulated.registered(10, profile=replace(profile("4090"), bandwidth=1.0)) as device:
        assert (device.capacity, device.timeline.profile.bandwidth) == (10, 1.0)
    with simulated.registered() as device:
        assert (device.capacity, device.timeline) == (float("inf"), None)
