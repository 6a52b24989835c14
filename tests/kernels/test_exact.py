"""The exponential and logarithm that every backend repeats bit for bit."""

from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.kernels.reference import exact


def ulps(actual, truth):
    unit = torch.finfo(torch.float32).eps * 2.0 ** torch.frexp(truth).exponent.sub(1)
    return ((actual.double() - truth).abs() / unit).max().item()


@pytest.mark.parametrize("low", [-86.0, -1.0, -1e-6])
def test_exp(low):
    x = torch.linspace(low, 0, 100_003)
    assert ulps(exact.exp(x), x.double().exp()) < 1.5


def test_exp_of_what_is_out_of_range():
    x = torch.tensor([0.0, -0.0, -86.1, -math.inf, math.nan])
    assert exact.exp(x).nan_to_num(nan=7.0).tolist() == [1, 1, 0, 0, 7]


@pytest.mark.parametrize(
    ("low", "high"), [(2.0**-24, 1.0), (0.99, 1.01), (1 - 2.0**-20, 1 + 2.0**-20), (1, 1e4)]
)
def test_log(low, high):
    x = torch.linspace(low, high, 100_003, dtype=torch.float64).float()
    x = x[x != 1]
    assert ulps(exact.log(x), x.double().log()) < 1.5


def test_log_of_one_and_of_the_ends():
    x = torch.tensor([1.0, 2.0**-126, 2.0**100])
    torch.testing.assert_close(exact.log(x), torch.tensor([0.0, -126 * math.log(2), 100 * math.log(2)]))
