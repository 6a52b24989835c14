from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.dpo.loss import preference_loss

CHOSEN, REJECTED = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 0.5])
TOKENS = torch.tensor([2, 4, 1, 5])


def by_hand(value):
    return -math.log(1 / (1 + math.exp(-value)))


def test_sigmoid():
    losses = preference_loss(CHOSEN, REJECTED, TOKENS, loss_type="sigmoid", beta=0.5)
    assert losses.tolist() == pytest.approx([by_hand(1.0), by_hand(-1.25)], rel=1e-6)


def test_conservative():
    losses = preference_loss(CHOSEN, REJECTED, TOKENS, loss_type="sigmoid", beta=0.5, label_smoothing=0.2)
    expected = [0.8 * by_hand(z) + 0.2 * by_hand(-z) for z in (1.0, -1.25)]
    assert losses.tolist() == pytest.approx(expected, rel=1e-6)


def test_ipo():
    losses = preference_loss(CHOSEN, REJECTED, TOKENS, loss_type="ipo", beta=0.25)
    assert losses.tolist() == pytest.approx([(0.5 + 1 - 2) ** 2, (-0.5 - 0.1 - 2) ** 2], rel=1e-6)


def test_ipo_of_an_answer_without_tokens():
    losses = preference_loss(torch.zeros(1), torch.zeros(1), torch.tensor([0, 0]), loss_type="ipo", beta=0.5)
    assert losses.tolist() == [1.0]
