from __future__ import annotations

import pytest
import torch

from tests.support.precision import assert_as_good_as, assert_as_good_on_average

ONE_ULP = 2.0**-23  # of float32 numbers in [1, 2)


def f32(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)


def f64(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_accepts_twice_the_plain_error_and_a_few_ulps():
    exact, plain = f64(1.0, 0.0), f32(1.0 + 8 * ONE_ULP, 0.0)
    assert_as_good_as(f32(1.0 + 20 * ONE_ULP, 0.0), plain, exact)  # 2 x 8 + 4
    with pytest.raises(AssertionError, match=r"loss: error 2\.503e-06 at \(0,\), allowed 2\.384e-06"):
        assert_as_good_as(f32(1.0 + 21 * ONE_ULP, 0.0), plain, exact, name="loss")


def test_the_ulp_is_that_of_the_largest_magnitude():
    exact = f64(1000.0, 0.0)  # its ulp in float32 is 2^-14
    assert_as_good_as(f32(1000.0, 2.0**-12), exact.float(), exact)
    with pytest.raises(AssertionError, match=r"at \(1,\)"):
        assert_as_good_as(f32(1000.0, 2.0**-12 * 1.01), exact.float(), exact)


def test_float64_is_given_sixteen_times_the_ulps():
    exact, ulp = f64(1.0), 2.0**-52
    assert_as_good_as(f64(1.0 + 64 * ulp), exact, exact)
    with pytest.raises(AssertionError, match=r"64 ulps of torch\.float64"):
        assert_as_good_as(f64(1.0 + 65 * ulp), exact, exact)


def test_zeros_must_be_zeros():
    with pytest.raises(AssertionError, match=r"at \(1,\)"):
        assert_as_good_as(f32(0.0, 1e-30), f32(0.0, 0.0), f64(0.0, 0.0))


@pytest.mark.parametrize(
    ("actual", "exact", "passes"),
    [
        (float("nan"), float("nan"), True),
        (float("inf"), float("inf"), True),
        (float("-inf"), float("inf"), False),
        (float("nan"), float("inf"), False),
        (1.0, float("nan"), False),
        (float("nan"), 1.0, False),
        (float("inf"), 1.0, False),
        (float("inf"), 1e39, True),  # past what float32 holds
    ],
)
def test_nan_and_infinity_must_match(actual, exact, passes):
    arguments = f32(0.5, actual), f32(0.5, exact), f64(0.5, exact)
    if passes:
        assert_as_good_as(*arguments)
    else:
        with pytest.raises(AssertionError, match=r"the first at \(1,\)"):
            assert_as_good_as(*arguments)


def test_a_plain_computation_that_overflows_excuses_nothing():
    with pytest.raises(AssertionError, match=r"error 1\.000e\+00"):
        assert_as_good_as(f32(2.0, 1.0), f32(1.0, float("inf")), f64(1.0, 1.0))


def test_names_the_worst_position_and_its_values():
    exact = torch.zeros(2, 3, dtype=torch.float64)
    actual = exact.float()
    actual[1, 2], actual[0, 1] = 0.5, 0.25
    with pytest.raises(AssertionError, match=r"at \(1, 2\).*actual 0\.5, plain 0\.0, exact 0\.0; 2 of 6"):
        assert_as_good_as(actual, exact.float(), exact)


def test_refuses_what_cannot_be_compared():
    with pytest.raises(AssertionError, match=r"dtype torch\.float32, plain PyTorch gives torch\.bfloat16"):
        assert_as_good_as(f32(1.0), f32(1.0).bfloat16(), f64(1.0))
    with pytest.raises(AssertionError, match="shapes"):
        assert_as_good_as(f32(1.0), f32(1.0), f64(1.0, 2.0))
    with pytest.raises(AssertionError, match=r"expected torch\.float64"):
        assert_as_good_as(f32(1.0), f32(1.0), f32(1.0))


def test_on_average_each_error_counts_and_so_does_the_largest():
    generator = torch.Generator().manual_seed(0)
    exact = torch.rand(1000, generator=generator, dtype=torch.float64) + 1.0
    noise = 1e-5 * torch.randn(1000, generator=generator, dtype=torch.float64)
    plain = (exact + noise).float()
    assert_as_good_on_average((exact - 1.9 * noise).float(), plain, exact)
    with pytest.raises(AssertionError, match=r"2 times plain"):
        assert_as_good_on_average((exact + 2.2 * noise).float(), plain, exact)
    outlier = noise.clone()
    outlier[3] = 5 * noise.abs().max()
    with pytest.raises(AssertionError, match=r"4 times plain"):
        assert_as_good_on_average((exact + outlier).float(), plain, exact)
