"""Inputs of `gae` and `ppo_loss` as their implementations take them, and the comparison with the reference.

The backends' own tests call launchers with these, so that the CPU kernels and the CUDA bodies face the same cases.
"""

from __future__ import annotations

import itertools
import math

import torch

from fastrlhf.kernels import Stat
from fastrlhf.kernels.reference.gae import gae as reference_gae
from fastrlhf.kernels.reference.ppo_loss import ppo_loss as reference_ppo_loss
from tests.support.precision import assert_as_good_as

GAE_OUTPUTS = ("advantages", "returns", "moments")
PPO_OUTPUTS = ("loss", "stats", "grad_logprobs", "grad_values", "grad_entropy")

# Lengths around a vector, a warp, a block and the CPU kernel's chunk of 2,048 tokens; nothing; and one.
SHAPES = [(1, 1), (3, 7), (5, 33), (4, 64), (2, 1025), (1, 2048), (7, 300), (0, 5), (5, 0)]

ON = {
    "cliprange_high": 0.3,
    "dual_clip": 1.5,
    "log_ratio_clamp": 0.4,
    "cliprange_value": 0.1,
    "entropy_coef": 0.02,
    "kl_coef": 0.3,
}


def option_sets() -> list[dict]:
    """Every subset of the coefficients that differ from the defaults, with every KL estimator in turn."""
    subsets = itertools.chain.from_iterable(itertools.combinations(ON, n) for n in range(len(ON) + 1))
    estimators = itertools.cycle(("k1", "k2", "k3"))
    return [{name: ON[name] for name in subset} | {"kl_estimator": next(estimators)} for subset in subsets]


def gae_case(shape, seed=0, dtype=torch.float32, gamma=0.99, lam=0.95) -> tuple:
    """Ragged rows with a gap and (of several) one masked altogether; moments over a part of the mask."""
    generator = torch.Generator().manual_seed(seed)
    rewards, values = (torch.randn(shape, generator=generator).to(dtype) for _ in range(2))
    mask = torch.arange(shape[1]) < torch.randint(1, max(shape[1], 1) + 1, (shape[0], 1), generator=generator)
    mask[:1, shape[1] // 2 : shape[1] // 2 + 2] = False
    mask[1:2] = False
    return rewards, values, mask, torch.rand(shape, generator=generator) > 0.3, gamma, lam


def ppo_case(shape, seed=0, dtype=torch.float32, without=(), denominators=(37.0, 41.0), **options) -> tuple:
    """Arguments of `ppo_loss` in order. Some tokens fall on every side of every clip. `without` leaves out
    any of "values", "entropy", "ref_logprobs", "weights", "token_weights"."""
    generator = torch.Generator().manual_seed(seed)

    def normal(scale=1.0):
        return scale * torch.randn(shape, generator=generator)

    old_logprobs, old_values = -2 + normal(0.5), normal()
    tensors = {
        "logprobs": old_logprobs + normal(0.4),
        "old_logprobs": old_logprobs,
        "advantages": normal(),
        "mask": torch.rand(shape, generator=generator) > 0.3,
        "values": old_values + normal(0.2),
        "old_values": old_values,
        "returns": normal(),
        "value_mask": torch.rand(shape, generator=generator) > 0.2,
        "entropy": normal().abs(),
        "ref_logprobs": old_logprobs + normal(0.4),
        "weights": 0.5 + normal().abs(),
        "token_weights": 0.2 + normal().abs(),
    }
    for name, tensor in tensors.items():
        left_out = name in without or ("values" in without and name in ("old_values", "returns"))
        tensors[name] = None if left_out else tensor if tensor.dtype == torch.bool else tensor.to(dtype)
    coefficients = {
        "cliprange": 0.2,
        "cliprange_high": 0.2,
        "dual_clip": math.inf,
        "log_ratio_clamp": math.inf,
        "cliprange_value": math.inf,
        "vf_coef": 0.1,
        "entropy_coef": 0.0,
        "kl_coef": 0.0,
        "kl_estimator": "k3",
    }
    assert not options.keys() - coefficients.keys()
    return (
        *tensors.values(),
        torch.tensor(denominators, dtype=torch.float64),
        *(coefficients | options).values(),
    )


def of_many_magnitudes(args: tuple) -> tuple:
    """`args` with factors of up to 2^±40 on advantages, values and rewards, so that even float64 sums depend on
    their order (sums of like float32 numbers are exact in float64, in any order)."""
    generator = torch.Generator().manual_seed(7)
    factor = torch.exp2(torch.randint(-40, 41, args[0].shape, generator=generator))
    scaled = (0, 1) if len(args) == 6 else (2, 4, 5, 6, 8)
    return tuple(arg * factor if i in scaled else arg for i, arg in enumerate(args))


def with_tensor(args: tuple, position: int, tensor: torch.Tensor) -> tuple:
    """`args` with the argument at `position` replaced."""
    return (*args[:position], tensor, *args[position + 1 :])


def non_contiguous(args: tuple) -> tuple:
    """The same values in tensors whose last two dimensions lie transposed in memory."""
    return tuple(
        arg.mT.contiguous().mT if isinstance(arg, torch.Tensor) and arg.dim() == 2 else arg for arg in args
    )


def in_float64(args: tuple) -> tuple:
    """`args` with the float tensors in float64: what the reference makes of them is held to be exact."""
    return tuple(
        arg.double() if isinstance(arg, torch.Tensor) and arg.is_floating_point() else arg for arg in args
    )


def assert_gae_as_good_as_reference(actual, args) -> None:
    """Each output of `gae(*args)`, `actual`, is at most twice as far from the truth as the reference's."""
    results = actual, reference_gae(*args), reference_gae(*in_float64(args))
    for i, name in enumerate(GAE_OUTPUTS[:2]):
        _assert_as_good(name, *(result[i] for result in results))
    # Count and squares by themselves; the sum may cancel, and goes by the unit of the larger of the two.
    _assert_as_good("moments", *(result[2] for result in results))
    for i in (0, 2):
        _assert_as_good(f"moments[{i}]", *(result[2][i] for result in results))


def assert_ppo_loss_as_good_as_reference(actual, args) -> None:
    """Each output of `ppo_loss(*args)`, `actual`, is at most twice as far from the truth as the reference's.

    A sum of terms of either sign may cancel to next to nothing: it goes by the unit of the sums beside it.
    """
    results = actual, reference_ppo_loss(*args), reference_ppo_loss(*in_float64(args))
    for i, name in enumerate(PPO_OUTPUTS[2:], start=2):
        _assert_as_good(name, *(result[i] for result in results))
    denominator = args[12][0]
    _assert_as_good(
        "loss and stats", *(torch.cat([loss[None] * denominator, stats]) for loss, stats, *_ in results)
    )
    for stat in Stat:
        if stat not in (Stat.POLICY_LOSS, Stat.KL):
            _assert_as_good(stat.name, *(result[1][stat] for result in results))


def assert_same(actual, expected, *, names) -> None:
    """Bit for bit the same, NaN in the same places."""
    for name, one, other in zip(names, actual, expected, strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape, name
        assert torch.equal(one.nan_to_num(nan=-1234.5), other.nan_to_num(nan=-1234.5)), name
        assert torch.equal(one.isnan(), other.isnan()), name


def assert_not_finite_alike(actual, args) -> None:
    """NaN, infinity and minus infinity of `ppo_loss(*args)` stand where the reference has them."""
    for name, one, other in zip(PPO_OUTPUTS, actual, reference_ppo_loss(*args), strict=True):
        special = ~other.isfinite()
        assert torch.equal(~one.isfinite(), special), name
        assert torch.equal(one[special].nan_to_num(nan=7.0), other[special].nan_to_num(nan=7.0)), name


def _assert_as_good(name, actual, plain, exact) -> None:
    # Sums are float64 whatever the inputs, but of float32 terms: float32 is what they are held to.
    if actual.dtype == torch.float64:
        actual, plain = actual.float(), plain.float()
    assert_as_good_as(actual, plain, exact.double(), name=name)
