from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fastrlhf import kernels
from tests.support.precision import assert_as_good_as

ESTIMATORS = ("k1", "k2", "k3")


def plain(logprobs, ref_logprobs, estimator):
    r = ref_logprobs - logprobs
    return {"k1": -r, "k2": r * r / 2, "k3": torch.exp(r) - 1 - r}[estimator]


@pytest.mark.parametrize(
    ("estimator", "expected"),
    [
        # log p = log 1/2, log p_ref = log 1/4, so r = -log 2 = -0.6931 and e^r = 1/2.
        ("k1", math.log(2)),
        ("k2", math.log(2) ** 2 / 2),
        ("k3", 0.5 - 1 + math.log(2)),
    ],
)
def test_one_token_by_hand(estimator, expected):
    logprobs, ref_logprobs = torch.tensor([0.5, 0.25], dtype=torch.float64).log()
    assert kernels.kl_estimate(logprobs, ref_logprobs, estimator).item() == pytest.approx(expected, rel=1e-14)


def test_the_default_is_k1():
    logprobs, ref_logprobs = torch.randn(2, 5)
    assert torch.equal(kernels.kl_estimate(logprobs, ref_logprobs), logprobs - ref_logprobs)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_as_good_as_plain(dtype, estimator):
    torch.manual_seed(0)
    logprobs, ref_logprobs = -torch.rand(2, 31, 33).mul(5).to(dtype)
    same = plain(logprobs, ref_logprobs, estimator)
    exact = plain(logprobs.double(), ref_logprobs.double(), estimator)
    assert_as_good_as(kernels.kl_estimate(logprobs, ref_logprobs, estimator), same, exact)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_gradcheck(estimator):
    logprobs, ref_logprobs = torch.randn(2, 7, dtype=torch.float64)
    check = lambda *tensors: kernels.kl_estimate(*tensors, estimator)  # noqa: E731
    assert torch.autograd.gradcheck(check, (logprobs.requires_grad_(), ref_logprobs.requires_grad_()))


def test_k3_keeps_the_digits_of_nearby_policies():
    logprobs = torch.zeros(1, dtype=torch.float64)
    k3 = kernels.kl_estimate(logprobs, logprobs + 1e-6, "k3").item()
    assert k3 == pytest.approx(5e-13, rel=1e-3)  # r^2 / 2; exp(r) - 1 - r keeps four digits fewer


@given(
    r=st.floats(-100, 80, allow_subnormal=False),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_property_k2_and_k3_are_never_negative(r, dtype):
    ref_logprobs = torch.tensor([r], dtype=dtype)
    for estimator in ("k2", "k3"):
        assert (kernels.kl_estimate(torch.zeros_like(ref_logprobs), ref_logprobs, estimator) >= 0).all()


def test_every_estimator_is_zero_on_equal_policies():
    logprobs = torch.randn(9)
    for estimator in ESTIMATORS:
        assert not kernels.kl_estimate(logprobs, logprobs, estimator).any()


def test_k1_and_k3_estimate_the_same_divergence():
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 9, generator=generator, dtype=torch.float64).mul(0.3).log_softmax(-1)
    divergence = (policy.exp() * (policy - reference)).sum().item()
    for estimator in ("k1", "k3"):  # exact expectation: the estimators are unbiased
        expected = (policy.exp() * kernels.kl_estimate(policy, reference, estimator)).sum().item()
        assert expected == pytest.approx(divergence, rel=1e-12)


def test_unknown_estimator():
    with pytest.raises(ValueError, match=r"kl_estimator is 'k4', expected one of k1, k2, k3"):
        kernels.kl_estimate(torch.zeros(1), torch.zeros(1), "k4")


def test_weighted_by_the_ratio_the_gradient_is_that_of_the_kl():
    """Over all tokens of a distribution, each as often as another policy samples it."""
    logits, old, reference = torch.randn(
        3, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(1)
    )
    logits.requires_grad_()
    logprobs, old, reference = (torch.log_softmax(each, dim=0) for each in (logits, old, reference))
    found = (old.exp() * kernels.weighted_kl(logprobs, reference, logprobs - old)).sum()
    exact = (logprobs.exp() * (logprobs - reference)).sum()
    assert found.item() == pytest.approx(exact.item(), rel=1e-12)
    (gradient,), (expected,) = (
        torch.autograd.grad(each, logits, retain_graph=True) for each in (found, exact)
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-12)
    # without the weight it is another one
    plain = (old.exp() * kernels.kl_estimate(logprobs, reference, "k3")).sum()
    assert not torch.allclose(torch.autograd.grad(plain, logits)[0], expected, rtol=1e-2)
