"""Rewards into advantages, by numbers worked out by hand."""

import math

import pytest
import torch

from fastrlhf.grpo.advantages import (
    decoupled_advantages,
    deviation,
    grpo_advantages,
    have_signal,
    rloo_advantages,
    standardised,
    total_rewards,
)

NAN = math.nan
# the first group: mean 2, deviation 1; the second is flat
REWARDS = torch.tensor([1.0, 2.0, 3.0, 5.0, 5.0, 5.0])


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=1e-5, atol=1e-6)


def test_group_scale():
    one = 1 / (1 + 1e-4)
    close(grpo_advantages(REWARDS, 3, "group"), [-one, 0.0, one, 0.0, 0.0, 0.0])


def test_no_scale():
    close(grpo_advantages(REWARDS, 3, "none"), [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0])


def test_batch_scale():
    # mean 3.5, squares 2.5² + 1.5² + 0.5² + 3 x 1.5² = 15.5
    one = 1 / (math.sqrt(15.5 / 5) + 1e-4)
    close(grpo_advantages(REWARDS, 3, "batch"), [-one, 0.0, one, 0.0, 0.0, 0.0])


def test_leave_one_out():
    # 1 - (2 + 6) / 2, 2 - (1 + 6) / 2, 6 - (1 + 2) / 2
    close(rloo_advantages(torch.tensor([1.0, 2.0, 6.0]), 3), [-3.0, -1.5, 4.5])


def test_who_has_no_reward_has_no_part():
    rewards = torch.tensor([1.0, NAN, 3.0, NAN, 7.0, NAN])
    close(grpo_advantages(rewards, 3, "none"), [-1.0, 0.0, 1.0, 0.0, 0.0, 0.0])
    # alone in its group, the fifth has nobody to be compared with
    close(rloo_advantages(rewards, 3), [-2.0, 0.0, 2.0, 0.0, 0.0, 0.0])


def test_total():
    rewards = torch.tensor([[1.0, 2.0], [NAN, 2.0], [NAN, NAN]])
    total = total_rewards(rewards, torch.tensor([3.0, 0.5]))
    close(total[:2], [4.0, 1.0])
    assert total[2].isnan()


def test_decoupled():
    # each reward is one deviation apart in its group, so that their sum is not the larger one's alone
    rewards = torch.tensor([[0.0, 100.0], [2.0, 0.0]])
    each = 1 / (math.sqrt(2) + 1e-4), 50 / (math.sqrt(5000) + 1e-4)
    sums = torch.tensor([-each[0] + 3 * each[1], each[0] - 3 * each[1]])
    close(
        decoupled_advantages(rewards, torch.tensor([1.0, 3.0]), 2),
        standardised(sums).tolist(),
    )


def test_standardised():
    one = 1 / (1 + 1e-4)
    close(standardised(torch.tensor([1.0, NAN, 2.0, 3.0])), [-one, 0.0, 0.0, one])


def test_deviation():
    close(deviation(torch.tensor([1.0, NAN, 3.0])), math.sqrt(2))
    assert deviation(torch.tensor([1.0, NAN])).isnan()
    by_row = deviation(torch.tensor([[1.0, 3.0, NAN], [2.0, NAN, NAN]]), dim=1)
    close(by_row[0], math.sqrt(2))
    assert by_row[1].isnan()


@pytest.mark.parametrize(
    ("group", "has"),
    [((1.0, 1.0, 2.0), True), ((1.0, 1.0, 1.0), False), ((NAN, 1.0, 1.0), False), ((NAN, NAN, 1.0), False)],
)
def test_signal(group, has):
    assert have_signal(torch.tensor(group), 3).tolist() == [has]
