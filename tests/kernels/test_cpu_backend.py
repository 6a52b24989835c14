from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._pytree import tree_leaves, tree_map

from fastrlhf.kernels import Stat, cpu, dispatch, native
from fastrlhf.kernels.cases import cases
from fastrlhf.kernels.reference.gae import gae as reference_gae
from fastrlhf.kernels.reference.ppo_loss import ppo_loss as reference_ppo_loss
from tests.kernels.native_cases import (
    GAE_OUTPUTS,
    PPO_OUTPUTS,
    SHAPES,
    assert_gae_as_good_as_reference,
    assert_not_finite_alike,
    assert_ppo_loss_as_good_as_reference,
    assert_same,
    gae_case,
    non_contiguous,
    of_many_magnitudes,
    option_sets,
    ppo_case,
    with_tensor,
)

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)

if native.missing("_cpu") is None:
    from fastrlhf.kernels.cpu.gae import gae
    from fastrlhf.kernels.cpu.ppo_loss import ppo_loss

NATIVE = [operation for operation in dispatch.OPERATIONS if dispatch.written(operation, "cpu")]
LOGPROBS, OLD_LOGPROBS, ADVANTAGES, MASK, VALUES, RETURNS, REF_LOGPROBS = 0, 1, 2, 3, 4, 6, 9
INF, NAN = math.inf, math.nan


@pytest.mark.parametrize("operation", NATIVE)
def test_outputs_are_float32_whatever_the_default_dtype(operation):
    """While a model is loaded the default may be another; a buffer of fewer bits would be written past its end."""
    for args in cases(operation, torch.float32).values():
        kernel = dispatch.implementation(operation, "cpu", *args)
        expected, found = (outputs_of(kernel, args, default) for default in (torch.float32, torch.float64))
        for one, other in zip(expected, found, strict=True):
            assert one.dtype == other.dtype
            assert torch.equal(one.nan_to_num(nan=7), other.nan_to_num(nan=7))


def outputs_of(kernel, args, default_dtype):
    """What the kernel returns and what is in its arguments afterwards."""
    args = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, args)
    torch.set_default_dtype(default_dtype)
    try:
        outputs = kernel(*args)
    finally:
        torch.set_default_dtype(torch.float32)
    return [leaf for leaf in tree_leaves((outputs, args)) if isinstance(leaf, torch.Tensor)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("gamma", "lam"), [(1.0, 0.95), (0.9, 1.0), (0.0, 0.5), (0.99, 0.0)])
def test_gae_is_as_good_as_the_reference(vectors, shape, gamma, lam):
    args = gae_case(shape, gamma=gamma, lam=lam)
    assert_gae_as_good_as_reference(gae(*args), args)


def test_gae_reads_nothing_at_masked_positions():
    rewards, values, mask, moments_mask, gamma, lam = gae_case((6, 40))
    poisoned = rewards.masked_fill(~mask, NAN), values.masked_fill(~mask, INF)
    assert_same(
        gae(*poisoned, mask, moments_mask, gamma, lam),
        gae(rewards, values, mask, moments_mask, gamma, lam),
        names=GAE_OUTPUTS,
    )


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_gae_hands_on_what_is_not_finite_like_the_reference(bad):
    args = gae_case((4, 30))
    for position in (0, 1):
        tensor = args[position].clone()
        tensor[2, 3] = bad
        given_args = with_tensor(args, position, tensor)
        for name, one, other in zip(GAE_OUTPUTS, gae(*given_args), reference_gae(*given_args), strict=True):
            assert torch.equal(one.isnan(), other.isnan()), name
            assert torch.equal(one.isposinf(), other.isposinf()), name


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_ppo_loss_is_as_good_as_the_reference(vectors, shape):
    for options in ({}, {"kl_coef": 0.3, "entropy_coef": 0.1, "cliprange_value": 0.1, "dual_clip": 1.3}):
        args = ppo_case(shape, **options)
        assert_ppo_loss_as_good_as_reference(ppo_loss(*args), args)


@pytest.mark.parametrize("options", option_sets(), ids=lambda options: " ".join(options) or "defaults")
def test_ppo_loss_with_every_combination_of_options(vectors, options):
    args = ppo_case((5, 33), **options)
    assert_ppo_loss_as_good_as_reference(ppo_loss(*args), args)


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
@pytest.mark.parametrize(
    "without",
    [
        (),
        ("values",),
        ("entropy",),
        ("ref_logprobs",),
        ("weights",),
        ("token_weights",),
        ("values", "entropy", "ref_logprobs"),
    ],
    ids=" and ".join,
)
def test_ppo_loss_without_what_may_be_left_out(without, estimator):
    args = ppo_case((6, 50), without=without, kl_coef=0.2, kl_estimator=estimator)
    assert_ppo_loss_as_good_as_reference(ppo_loss(*args), args)


def test_ppo_loss_of_rows_that_are_masked_altogether():
    args = ppo_case((4, 40))
    for mask in (torch.zeros(4, 40, dtype=torch.bool), torch.arange(4)[:, None].expand(4, 40) == 1):
        given_args = with_tensor(args, MASK, mask)
        assert_ppo_loss_as_good_as_reference(ppo_loss(*given_args), given_args)


def test_ppo_loss_is_silent_about_what_the_mask_leaves_out():
    args = ppo_case((4, 40), kl_coef=0.2, entropy_coef=0.1)
    poisoned = args
    for position in (*range(3), 8, 9, 10, 11):
        poisoned = with_tensor(poisoned, position, args[position].masked_fill(~args[MASK], NAN))
    for position in (4, 5, 6):
        poisoned = with_tensor(poisoned, position, args[position].masked_fill(~args[7], INF))
    assert_same(ppo_loss(*poisoned), ppo_loss(*args), names=PPO_OUTPUTS)


@pytest.mark.parametrize("function", ["gae", "ppo_loss"])
def test_non_contiguous_inputs(function):
    if function == "gae":
        args = gae_case((9, 70))
        assert_same(gae(*non_contiguous(args)), gae(*args), names=GAE_OUTPUTS)
    else:
        args = ppo_case((9, 70), kl_coef=0.2)
        assert_same(ppo_loss(*non_contiguous(args)), ppo_loss(*args), names=PPO_OUTPUTS)


@pytest.mark.parametrize("difference", [1e4, -1e4, 88.0, 88.8, -87.5, -103.5, -104.5])
@pytest.mark.parametrize("clamp", [INF, 20.0, 1e5])
@pytest.mark.parametrize("position", [LOGPROBS, REF_LOGPROBS])
def test_extreme_log_ratios(vectors, position, clamp, difference):
    args = ppo_case((3, 35), without=("weights",), log_ratio_clamp=clamp, kl_coef=0.1)
    tensor = args[position].clone()
    tensor[0], tensor[1, :20] = args[OLD_LOGPROBS][0] + difference, args[OLD_LOGPROBS][1, :20] - difference
    args = with_tensor(args, position, tensor)
    assert_not_finite_alike(ppo_loss(*args), args)
    finite = with_tensor(args, MASK, args[MASK] & (args[position] - args[OLD_LOGPROBS]).abs().lt(88))
    assert_ppo_loss_as_good_as_reference(ppo_loss(*finite), finite)


@pytest.mark.parametrize("difference", [0.0, 1e4, -1e4])
def test_advantages_of_zero(difference):
    args = ppo_case((3, 35), dual_clip=2.0)
    args = with_tensor(args, ADVANTAGES, torch.zeros(3, 35))
    args = with_tensor(args, LOGPROBS, args[OLD_LOGPROBS] + difference)
    assert_not_finite_alike(ppo_loss(*args), args)


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("position", [0, 1, 2, 4, 5, 6, 8, 9, 10, 11])
def test_what_is_not_finite_goes_where_the_reference_sends_it(vectors, position, bad):
    for options in option_sets()[::7]:
        args = ppo_case((3, 21), **options)
        tensor = args[position].clone()
        tensor[0, :10], tensor[2, 5:] = bad, -bad
        given_args = with_tensor(args, position, tensor)
        assert_not_finite_alike(ppo_loss(*given_args), given_args)


@pytest.mark.parametrize(("low", "high"), [(-104.0, -87.0), (-87.0, -1.0), (-1.0, 1.0), (1.0, 88.7)])
def test_the_exponential_is_within_one_ulp(vectors, low, high):
    x = torch.linspace(low, high, 100_003)
    zero, everywhere = torch.zeros_like(x), torch.ones_like(x, dtype=torch.bool)
    coefficients = (1e30, 1e30, INF, INF, INF, 0.0, 0.0, 0.0, "k1")
    ones = torch.ones(2, dtype=torch.float64)
    # With an advantage of minus one and nothing clipped the gradient is the ratio.
    absent = (None, None, None, everywhere, None, None, None, None)
    ratio = ppo_loss(x, zero, zero - 1, everywhere, *absent, ones, *coefficients)[2]
    exact = x.double().exp()
    unit = torch.finfo(torch.float32).eps * 2.0 ** torch.frexp(exact).exponent.sub(1).clamp(min=-126)
    assert ((ratio.double() - exact).abs() / unit).max() <= 1


def test_k3_does_not_cancel_near_zero(vectors):
    # The plain expm1(x) - x keeps about five bits here: x²/2 is some thirty units in the last place of x.
    args = ppo_case((8, 64), kl_estimator="k3")
    args = with_tensor(args, REF_LOGPROBS, args[LOGPROBS] * (1 + 2.0**-18))
    x = (args[REF_LOGPROBS] - args[LOGPROBS]).double()[args[MASK]]
    exact = (x**2 / 2 + x**3 / 6).sum()
    assert (ppo_loss(*args)[1][Stat.KL] / exact - 1).abs() < 1e-6
    assert (reference_ppo_loss(*args)[1][Stat.KL] / exact - 1).abs() > 1e-4


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(0, 5),
    columns=st.integers(0, 70),
    seed=st.integers(0, 2**20),
    options=st.sampled_from(option_sets()),
    without=st.sets(st.sampled_from(["values", "entropy", "ref_logprobs", "weights", "token_weights"])),
    gamma=st.floats(0, 1),
    lam=st.floats(0, 1),
)
def test_any_shape_and_any_options(rows, columns, seed, options, without, gamma, lam):
    args = ppo_case((rows, columns), seed, without=without, **options)
    assert_ppo_loss_as_good_as_reference(ppo_loss(*args), args)
    args = gae_case((rows, columns), seed, gamma=gamma, lam=lam)
    assert_gae_as_good_as_reference(gae(*args), args)


def test_the_number_of_threads_changes_no_bit(vectors, threads):
    loss_args = of_many_magnitudes(ppo_case((64, 257), kl_coef=0.1, entropy_coef=0.1))
    gae_args = of_many_magnitudes(gae_case((64, 257)))
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append((ppo_loss(*loss_args), gae(*gae_args)))
    for loss, advantages in results[1:]:
        assert_same(loss, results[0][0], names=PPO_OUTPUTS)
        assert_same(advantages, results[0][1], names=GAE_OUTPUTS)


def test_portable_and_vector_versions_agree():
    args = ppo_case((16, 130), kl_coef=0.1, cliprange_value=0.2)
    native.module("_cpu").force_portable(True)
    portable = ppo_loss(*args)
    native.module("_cpu").force_portable(False)
    for name, one, other in zip(PPO_OUTPUTS, portable, ppo_loss(*args), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)


def test_outputs_are_laid_out_like_the_reference_ones():
    args = non_contiguous(ppo_case((3, 5)))
    for one, other in zip(ppo_loss(*args), reference_ppo_loss(*args), strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_refuses_other_dtypes_with_a_reason(dtype):
    assert cpu.serves(torch.zeros(2, dtype=dtype)) == f"takes float32, not {str(dtype)[6:]}"
    assert cpu.serves(torch.zeros(2, device="meta")) == "takes CPU tensors, not meta"
    assert cpu.serves(torch.zeros(2)) is None
