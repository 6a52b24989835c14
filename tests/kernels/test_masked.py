from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastrlhf import kernels
from tests.support.precision import assert_as_good_as

DTYPES = [torch.float64, torch.float32, torch.bfloat16]
SHAPES = [(1,), (31,), (33, 127), (2, 3, 129)]


def random(shape, dtype=torch.float32, scale=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(shape, generator=generator) * scale + shift
    mask = torch.rand(shape, generator=generator) > 0.3
    mask.view(-1)[0] = True
    return values.to(dtype), mask


def test_moments_by_hand():
    values, mask = torch.tensor([[1.0, -2.0], [3.0, 100.0]]), torch.tensor([[True, True], [True, False]])
    assert kernels.masked_moments(values, mask).tolist() == [3.0, 2.0, 14.0]
    assert kernels.masked_mean(values, mask).item() == pytest.approx(2 / 3)


def test_whiten_by_hand():
    # 1, 2, 3: mean 2, unbiased variance 1.
    values, mask = torch.tensor([1.0, 2.0, 3.0, 50.0]), torch.tensor([True, True, True, False])
    torch.testing.assert_close(kernels.whiten(values, mask), torch.tensor([-1.0, 0.0, 1.0, 0.0]))
    unshifted = kernels.whiten(values, mask, shift_mean=False)
    torch.testing.assert_close(unshifted, torch.tensor([1.0, 2.0, 3.0, 0.0]))
    # variance 1 + epsilon 3 = 4, so values are halved
    torch.testing.assert_close(kernels.whiten(values, mask, epsilon=3), torch.tensor([-0.5, 0.0, 0.5, 0.0]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_and_whiten_are_as_good_as_plain(dtype, shape):
    values, mask = random(shape, dtype, scale=2, shift=1)

    def plain(values):
        kept = values[mask]
        spread = kept.var() if kept.numel() > 1 else torch.zeros_like(kept[0])
        return kept.mean(), torch.where(mask, (values - kept.mean()) / (spread + 1e-8).sqrt(), 0)

    mean, whitened = plain(values.float() if dtype == torch.bfloat16 else values)
    exact_mean, exact_whitened = plain(values.double())
    assert_as_good_as(kernels.masked_mean(values, mask), mean.to(dtype), exact_mean, name="mean")
    assert_as_good_as(kernels.whiten(values, mask), whitened.to(dtype), exact_whitened, name="whitened")


def test_variance_of_values_far_from_zero():
    values, mask = random((1000,), torch.float32, shift=1e4)
    whitened = kernels.whiten(values, mask)[mask].double()
    assert whitened.mean().abs() < 1e-6 and (whitened.var() - 1).abs() < 1e-6


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_masked_values_do_not_leak(poison):
    values, mask = random((5, 33))
    poisoned = values.masked_fill(~mask, poison)
    for function in (kernels.masked_moments, kernels.masked_mean, kernels.whiten):
        leaves = [tensor.clone().requires_grad_() for tensor in (values, poisoned)]
        results = [function(leaf, mask) for leaf in leaves]
        assert torch.equal(*results)
        for leaf, result in zip(leaves, results, strict=True):
            (result * torch.arange(result.numel()).view(result.shape)).sum().backward()
            assert torch.equal(leaf.grad, leaves[0].grad)


def test_nothing_kept_and_one_kept():
    values, none = torch.ones(2, 3), torch.zeros(2, 3).bool()
    assert kernels.masked_moments(values, none).tolist() == [0, 0, 0]
    assert kernels.masked_mean(values, none).item() == 0
    assert not kernels.whiten(values, none).any()
    one = none.clone()
    one[1, 1] = True
    assert not kernels.whiten(values, one).any()
    assert kernels.whiten(values, one, shift_mean=False)[1, 1] == 1
    assert kernels.masked_moments(torch.zeros(0), torch.zeros(0).bool()).tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.uint8, torch.bfloat16], ids=str)
def test_a_mask_of_any_dtype_counts_true_positions(dtype):
    values, mask = torch.ones(1001), torch.ones(1001).to(dtype)
    assert kernels.masked_moments(values, mask).tolist() == [1001, 1001, 1001]  # 1,000 if summed in bfloat16
    mask = mask.mul(3) if dtype != torch.bool else mask
    assert kernels.masked_moments(values, mask).tolist() == [1001, 1001, 1001]


def test_non_contiguous():
    values, mask = random((34, 66))
    slices = values.t()[::2, 1:], mask.t()[::2, 1:]
    assert torch.equal(kernels.whiten(*slices), kernels.whiten(*(t.contiguous() for t in slices)))


def test_whiten_with_moments_of_a_larger_whole():
    values, mask = random((8, 33), torch.float64)
    moments = sum(kernels.masked_moments(values[i : i + 3], mask[i : i + 3]) for i in (0, 3, 6))
    parts = [kernels.whiten(values[i : i + 3], mask[i : i + 3], moments) for i in (0, 3, 6)]
    torch.testing.assert_close(torch.cat(parts), kernels.whiten(values, mask), rtol=1e-12, atol=1e-12)


def test_gradcheck():
    values, mask = random((3, 5), torch.float64)
    values.requires_grad_()
    for function in (kernels.masked_mean, kernels.whiten):
        assert torch.autograd.gradcheck(lambda v, f=function: f(v, mask), (values,))


FINITE = st.floats(-1e3, 1e3, allow_nan=False, width=32)
ROWS = st.lists(st.tuples(FINITE, st.booleans()), min_size=1, max_size=40)


def tensors(rows):
    values, mask = zip(*rows, strict=True)
    return torch.tensor(values, dtype=torch.float64), torch.tensor(mask)


@settings(deadline=None)
@given(rows=ROWS)
def test_property_whitened_values_have_mean_zero_and_variance_one(rows):
    values, mask = tensors(rows)
    kept = values[mask]
    whitened = kernels.whiten(values, mask)
    assert not whitened[~mask].any()
    if kept.numel() > 1 and kept.std() > 0.1:  # well above epsilon 1e-8 and the rounding of sums of 1e6
        assert whitened[mask].mean().abs() < 1e-9
        assert (whitened[mask].var() - 1).abs() < 1e-5
        unshifted = kernels.whiten(values, mask, shift_mean=False)[mask]
        assert (unshifted.mean() - kept.mean()).abs() < 1e-9 * (1 + kept.abs().max())


@settings(deadline=None)
@given(rows=ROWS, cut=st.integers(0, 40))
def test_property_moments_are_additive(rows, cut):
    values, mask = tensors(rows)
    whole = kernels.masked_moments(values, mask)
    parts = kernels.masked_moments(values[:cut], mask[:cut]) + kernels.masked_moments(
        values[cut:], mask[cut:]
    )
    torch.testing.assert_close(parts, whole, rtol=1e-12, atol=1e-9)


def test_compiles_whole():
    values, mask = random((4, 7))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def function(values, mask):
        return kernels.whiten(values, mask), kernels.masked_mean(values, mask)

    for got, expected in zip(
        function(values, mask), (kernels.whiten(values, mask), kernels.masked_mean(values, mask)), strict=True
    ):
        torch.testing.assert_close(got, expected)


def test_errors_name_the_argument_its_value_and_what_was_expected():
    values, mask, moments = torch.zeros(2, 3), torch.ones(3).bool(), torch.zeros(3).double()
    message = r"mask has shape \[3\], expected the shape of values = \[2, 3\]"
    for function in (kernels.masked_moments, kernels.masked_mean, kernels.whiten):
        with pytest.raises(ValueError, match=message):
            function(values, mask)
    with pytest.raises(ValueError, match=message):
        kernels.whiten(values, mask, moments)
