"""The Triton kernels of `gae` and `ppo_loss`, launcher by launcher, against the reference."""

from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.kernels import Stat, dispatch
from fastrlhf.kernels.reference.gae import gae as reference_gae
from fastrlhf.kernels.reference.ppo_loss import ppo_loss as reference_ppo_loss
from fastrlhf.kernels.triton import unavailable
from tests.kernels.native_cases import (
    GAE_OUTPUTS,
    PPO_OUTPUTS,
    assert_gae_as_good_as_reference,
    assert_not_finite_alike,
    assert_ppo_loss_as_good_as_reference,
    assert_same,
    gae_case,
    in_float64,
    of_many_magnitudes,
    option_sets,
    ppo_case,
    with_tensor,
)
from tests.support.configs import config_id, every_config, forced_config
from tests.support.poison import poisoned_memory
from tests.support.precision import assert_as_good_as

if reason := unavailable():
    pytest.skip(reason, allow_module_level=True)

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
HALVES = [torch.bfloat16, torch.float16]
pytestmark = [pytest.mark.gpu] if DEVICE == "cuda" else []


@pytest.fixture(autouse=True)
def _poisoned():
    with poisoned_memory():
        yield


def run(operation, args):
    """The launcher's results on the CPU."""
    moved = [arg.to(DEVICE) if isinstance(arg, torch.Tensor) else arg for arg in args]
    return tuple(result.cpu() for result in dispatch._module(operation, "triton").__dict__[operation](*moved))


def gae(*args):
    return run("gae", args)


def ppo_loss(*args):
    return run("ppo_loss", args)


@pytest.mark.parametrize("choice", every_config("ppo_loss"), ids=config_id)
@pytest.mark.parametrize("shape", [(1, 1), (5, 33), (2, 1025), (3, 16)], ids=str)
def test_every_config_of_ppo_loss(choice, shape):
    args = ppo_case(shape, kl_coef=0.3, entropy_coef=0.1, cliprange_value=0.1, dual_clip=1.3)
    with forced_config(*choice):
        assert_ppo_loss_as_good_as_reference(ppo_loss(*args), args)


@pytest.mark.parametrize("options", option_sets()[::3], ids=lambda options: " ".join(options))
def test_ppo_loss_with_many_combinations_of_options(options):
    for without in ((), ("values", "weights"), ("entropy", "ref_logprobs", "token_weights")):
        args = ppo_case((3, 21), without=without, **options)
        assert_ppo_loss_as_good_as_reference(ppo_loss(*args), args)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e4])
@pytest.mark.parametrize("position", [0, 1, 2, 4, 5, 6, 8, 9, 10, 11])
def test_what_is_not_finite_goes_where_the_reference_sends_it(position, bad):
    for options in option_sets()[::21]:
        args = ppo_case((2, 30), **options)
        tensor = args[position].clone()
        tensor[0, :10], tensor[1, 5:] = bad, -bad
        args = with_tensor(args, position, tensor)
        assert_not_finite_alike(ppo_loss(*args), args)


def test_gae_stops_what_is_not_finite_at_the_end_of_its_episode():
    rewards, values, mask, moments_mask, gamma, lam = gae_case((6, 100))
    rewards[0, 80], values[3, 60] = math.nan, math.inf
    rewards, values = rewards.masked_fill(~mask, math.nan), values.masked_fill(~mask, math.inf)
    args = (rewards, values, mask, moments_mask, gamma, lam)
    for name, one, other in zip(GAE_OUTPUTS, gae(*args), reference_gae(*args), strict=True):
        assert torch.equal(one.isnan(), other.isnan()), name
        assert torch.equal(one.isinf(), other.isinf()), name


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_halves_are_computed_in_float32_and_rounded_once(dtype):
    for function, args, names in (
        (gae, gae_case((5, 70), dtype=dtype), GAE_OUTPUTS),
        (ppo_loss, ppo_case((5, 70), dtype=dtype, kl_coef=0.2, entropy_coef=0.1), PPO_OUTPUTS),
    ):
        widened = (
            arg.float() if isinstance(arg, torch.Tensor) and arg.dtype == dtype else arg for arg in args
        )
        for name, one, exact in zip(names, function(*args), function(*widened), strict=True):
            assert torch.equal(one, exact.to(one.dtype)), name


def test_float16_is_as_good_as_the_reference():
    args = gae_case((5, 70), dtype=torch.float16)
    assert_gae_as_good_as_reference(gae(*args), args)
    args = ppo_case((5, 70), dtype=torch.float16, kl_coef=0.2, entropy_coef=0.1)
    assert_ppo_loss_as_good_as_reference(ppo_loss(*args), args)


def test_the_same_input_gives_the_same_bits():
    args = of_many_magnitudes(gae_case((9, 300)))
    assert_same(gae(*args), gae(*args), names=GAE_OUTPUTS)
    args = of_many_magnitudes(ppo_case((9, 300), kl_coef=0.1))
    assert_same(ppo_loss(*args), ppo_loss(*args), names=PPO_OUTPUTS)


@pytest.mark.parametrize("scale", [1e-3, 0.9, 1.1, 20.0])
def test_the_kl_estimator_of_policies_that_are_next_to_equal(scale):
    # exp(r) - 1 - r of r = 1e-3 would lose all but one digit to cancellation
    args = ppo_case((2, 64), kl_coef=1.0, kl_estimator="k3")
    shift = scale * torch.randn(2, 64, generator=torch.Generator().manual_seed(3))
    args = with_tensor(with_tensor(args, 2, torch.zeros(2, 64)), 9, args[0] + shift)
    results = ppo_loss(*args), reference_ppo_loss(*args), reference_ppo_loss(*in_float64(args))
    assert_as_good_as(*(out[2] for out in results), name="gradient")
    actual, plain, exact = (out[1][Stat.KL] for out in results)
    assert_as_good_as(actual.float(), plain.float(), exact, name="KL")
