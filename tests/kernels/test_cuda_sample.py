"""The CUDA body of `sample`, unmodified, on the CPU (see tests/support/cuda_on_cpu.h): the reference's tokens."""

from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.kernels.reference.sample import sample as reference_sample
from fastrlhf.kernels.sample_arguments import sample_call
from tests.support.cuda_on_cpu import bodies
from tests.support.precision import assert_as_good_as

both_orders = pytest.mark.parametrize("reversed_threads", [False, True], ids=["forward", "reversed"])


def sample(*args, reversed_threads=False):
    """`sample` by the CUDA body; arguments and results as `fastrlhf.kernels.reference.sample`."""
    call = sample_call(*args)
    bodies().sample(args[0].dtype == torch.bfloat16, *call.arguments, reversed_threads)
    return call.outputs


def case(
    logits, top_k=0, top_p=1.0, min_p=0.0, temperature=0.8, seen=None, banned=None, penalty=1.0, of_rows=None
):
    row_ids, of_rows = torch.arange(len(logits)) + 2**33, of_rows or [None] * 7
    return (
        *(logits, row_ids, 2**62 + 1, 17, temperature, top_k, top_p, min_p, penalty),
        *(seen, banned, of_rows),
    )


def normal(*shape, scale=2.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def assert_like_the_reference(actual, args):
    plain = reference_sample(*args)
    exact = reference_sample(args[0].double(), *args[1:])
    assert torch.equal(actual[0], plain[0])
    for name, *results in zip(("logprobs", "entropy"), actual[1:], plain[1:], exact[1:], strict=True):
        assert_as_good_as(*results, name=name)


@both_orders
@pytest.mark.parametrize("columns", [1, 5, 1023, 4099])
def test_every_filter(columns, reversed_threads):
    logits = normal(2, columns)
    seen, banned = normal(2, columns, seed=1) > 0, normal(2, columns, seed=2) > 1
    banned[:, 0] = False
    for args in (
        case(logits, temperature=0.0),
        case(logits, top_k=9, top_p=0.8, min_p=0.01),
        case(logits, top_p=0.95, seen=seen, banned=banned, penalty=1.4),
    ):
        assert_like_the_reference(sample(*args, reversed_threads=reversed_threads), args)


@pytest.mark.parametrize(
    "logits",
    [
        normal(2, 3_000).round(),
        normal(2, 3_000) * 1e-30,
        torch.cat([torch.full((2, 700), -math.inf), normal(2, 300)], dim=1),
        torch.cat([torch.full((2, 700), -0.0), torch.zeros(2, 300)], dim=1),
    ],
    ids=["ties", "tiny", "mostly -inf", "both zeros"],
)
def test_thresholds_of_unusual_rows(logits):
    for filters in (
        {"top_k": 1},
        {"top_k": 500},
        {"top_p": 0.2},
        {"top_p": 0.9999},
        {"top_k": 900, "top_p": 0.5},
    ):
        args = case(logits, **filters)
        assert torch.equal(sample(*args)[0], reference_sample(*args)[0]), filters


def test_settings_of_each_row_and_rows_that_lie_apart():
    logits = torch.full((4, 3, 70), math.nan)
    logits[:, 1] = normal(4, 70)
    whole = [torch.tensor(values) for values in ([1, 2**62, -1, 5], [0, 5, 2**31, 7], [0, 9, 100, 3])]
    real = [
        torch.tensor(values)
        for values in (
            [0.0, 0.7, 2.0, 1.0],
            [0.5, 1.0, 0.9, 2.0],
            [0.0, 0.1, 0.02, 0.0],
            [1.5, 1.0, 0.7, 1.0],
        )
    ]
    args = case(
        logits[:, 1],
        seen=normal(4, 70, seed=1) > 0,
        banned=(normal(70, seed=2) > 2).expand(4, 70),
        of_rows=[whole[0], whole[1], real[0], whole[2], *real[1:]],
    )
    assert_like_the_reference(sample(*args), args)


def test_rows_without_a_distribution():
    logits = normal(5, 40)
    logits[0, 7], logits[1, 39], logits[2] = math.nan, math.inf, -math.inf
    banned = torch.zeros(5, 40, dtype=torch.bool)
    banned[3] = True
    args = case(logits, banned=banned, top_k=3, top_p=0.5)
    for one, other in zip(sample(*args), reference_sample(*args), strict=True):
        torch.testing.assert_close(one, other, equal_nan=True)


def test_bfloat16_logits_are_those_in_float32():
    logits = normal(3, 130).bfloat16()
    for args in (case(logits, top_p=0.9), case(logits, top_k=5)):
        wide = (logits.float(), *args[1:])
        assert all(torch.equal(one, other) for one, other in zip(sample(*args), sample(*wide), strict=True))


def test_no_row():
    assert all(tensor.shape == (0,) for tensor in sample(*case(normal(0, 5))))
