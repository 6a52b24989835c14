from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.reward.loss import pairwise_loss

CHOSEN, REJECTED = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 0.5])


def by_hand(value):
    return -math.log(1 / (1 + math.exp(-value)))


def test_the_log_of_the_probability_of_the_preference():
    assert pairwise_loss(CHOSEN, REJECTED).tolist() == pytest.approx([by_hand(2.0), by_hand(-2.5)], rel=1e-6)


def test_margin():
    losses = pairwise_loss(CHOSEN, REJECTED, torch.tensor([0.5, 3.0]))
    assert losses.tolist() == pytest.approx([by_hand(1.5), by_hand(-5.5)], rel=1e-6)


def test_centring():
    losses = pairwise_loss(CHOSEN, REJECTED, center_coefficient=0.1)
    assert losses.tolist() == pytest.approx([by_hand(2.0), by_hand(-2.5) + 0.1 * 1.5**2], rel=1e-6)


def test_large_differences_stay_finite():
    assert pairwise_loss(torch.tensor([-1e4]), torch.tensor([1e4])).tolist() == [2e4]
