"""Metrics of the updates, by hand."""

import math

import pytest
import torch

from fastrlhf.kernels import PPOLoss, Stat
from fastrlhf.ppo.stats import UpdateStats


def sums(**values):
    """Statistics of a micro-batch by name, the others zero."""
    stats = torch.zeros(len(Stat), dtype=torch.float64)
    for name, value in values.items():
        stats[Stat[name]] = value
    return stats


def add(stats, loss=0.0, entropy=0.0, positions=8, **values):
    stats.add(PPOLoss(torch.tensor(loss), sums(**values)), torch.tensor([entropy]), positions)


def test_micro_batches_add_up_before_anything_is_divided():
    stats = UpdateStats()
    add(stats, 1.0, POLICY_LOSS=1, RATIO=1, APPROX_KL=0, ENTROPY=1, TOKENS=1, VALUE_LOSS=6, VALUE_TOKENS=2)
    add(stats, 2.0, POLICY_LOSS=5, RATIO=3, APPROX_KL=2, ENTROPY=4, TOKENS=3, VALUE_LOSS=3, VALUE_TOKENS=4)
    assert stats.minibatch_loss.item() == 3.0
    stats.end_minibatch(0.5, skipped=False)
    found = stats.metrics()
    assert found["loss/policy_avg"] == 6 / 4
    assert found["val/ratio"] == 1.0
    assert found["policy/approxkl_avg"] == 0.5
    assert found["policy/entropy_avg"] == 5 / 4
    assert found["loss/value_avg"] == 9 / 6
    assert found["train/grad_norm"] == 0.5
    assert math.isnan(found["val/ratio_var"])


def test_minibatches_are_averaged_and_their_ratios_have_a_variance():
    stats = UpdateStats()
    for ratio, norm in ((1.0, 1.0), (3.0, 2.0), (5.0, 6.0)):
        add(stats, RATIO=2 * ratio, CLIPPED=1, TOKENS=2, VALUE_CLIPPED=1, VALUE_TOKENS=4)
        stats.end_minibatch(norm, skipped=norm == 2.0)
    found = stats.metrics()
    assert found["val/ratio"] == 3.0
    assert found["val/ratio_var"] == pytest.approx(4.0)  # unbiased
    assert found["policy/clipfrac_avg"] == 0.5
    assert found["val/clipfrac_avg"] == 0.25
    assert found["train/grad_norm"] == 3.0
    assert stats.skipped == 1


def test_padded_averages_count_padding_with_ratio_one():
    stats = UpdateStats(padded=True)
    add(stats, entropy=20.0, positions=6, RATIO=4, APPROX_KL=3, ENTROPY=5, POLICY_LOSS=8, TOKENS=2)
    add(stats, entropy=10.0, positions=4, RATIO=2, APPROX_KL=1, ENTROPY=5, POLICY_LOSS=4, TOKENS=2)
    stats.end_minibatch(0.0, skipped=False)
    found = stats.metrics()
    assert found["val/ratio"] == pytest.approx((6 + 6) / 10)  # six of ten positions are padding
    assert found["policy/approxkl_avg"] == pytest.approx(4 / 10)
    assert found["policy/entropy_avg"] == pytest.approx(30 / 10)
    assert found["loss/policy_avg"] == 12 / 4  # losses are averaged over tokens either way


def test_no_token_is_no_division_by_zero():
    stats = UpdateStats()
    add(stats)
    stats.end_minibatch(0.0, skipped=False)
    assert stats.metrics()["loss/policy_avg"] == 0.0
