from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.kernels import dispatch, native
from fastrlhf.kernels.reference.gae import gae as reference_gae
from fastrlhf.kernels.verify import _ratio, verify
from tests.support.precision import assert_as_good_as

CPU = torch.device("cpu")


@pytest.fixture
def broken(monkeypatch):
    """Puts a function into the cpu backend's place for gae: `broken(function)`."""

    def put(function):
        genuine = dispatch.implementation

        def implementation(operation, backend, *args):
            if (operation, backend) == ("gae", "cpu"):
                return function
            return genuine(operation, backend, *args)

        monkeypatch.setattr(dispatch, "implementation", implementation)

    return put


@pytest.mark.parametrize("operation", dispatch.OPERATIONS)
def test_the_reference_is_right(operation):
    verdict = verify(operation, "reference", CPU)
    assert verdict.worst <= 0.5 and not verdict.wrong


@pytest.mark.skipif(native.missing("_cpu") is not None, reason="fastrlhf._cpu is not built")
def test_the_cpu_kernels_are_right():
    verdicts = [verify(operation, "cpu", CPU) for operation in dispatch.OPERATIONS]
    assert not [verdict for verdict in verdicts if verdict.wrong]
    assert [verdict for verdict in verdicts if verdict.worst is not None]


def off_by(error):
    """gae with an error in one advantage of each case that has any."""

    def gae(rewards, *others):
        advantages, *rest = reference_gae(rewards, *others)
        if advantages.numel():
            advantages[0, 0] += error
        return (advantages, *rest)

    return gae


@pytest.mark.parametrize("error", [1e-3, math.nan, math.inf])
def test_a_wrong_value_is_found_and_placed(broken, error):
    broken(off_by(error))
    verdict = verify("gae", "cpu", CPU)
    assert verdict.wrong
    assert verdict.where.startswith("float32, ")
    assert str(verdict).endswith(f"times the error allowed in {verdict.where}")


@pytest.mark.parametrize(
    "function",
    [
        lambda *args: tuple(tensor.double() for tensor in reference_gae(*args)),
        lambda *args: tuple(tensor[..., :2] for tensor in reference_gae(*args)),
    ],
    ids=["dtype", "shape"],
)
def test_a_wrong_dtype_or_shape_is_found(broken, function):
    broken(function)
    assert verify("gae", "cpu", CPU).worst == math.inf


def test_a_kernel_that_raises_is_wrong_and_says_what(broken):
    def raises(*args):
        raise RuntimeError("no image for this card")

    broken(raises)
    verdict = verify("gae", "cpu", CPU)
    assert verdict.wrong
    assert "float32, ragged rows: RuntimeError: no image for this card" in str(verdict)


def test_an_argument_that_is_changed_but_should_not_be_is_found(broken):
    def scribbles(rewards, *others):
        out = reference_gae(rewards, *others)
        rewards.zero_()
        return out

    broken(scribbles)
    assert verify("gae", "cpu", CPU).wrong


def test_a_backend_that_takes_nothing_has_no_verdict():
    verdict = verify("gae", "cuda", CPU)
    assert verdict.worst is None and not verdict.wrong


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("units", [0, 1, 3, 3.9, 5, 50])
def test_the_ratio_is_the_tests_definition_of_right(dtype, units):
    exact = torch.tensor([1.5, -0.25, math.nan, math.inf], dtype=torch.float64)
    plain = exact.to(dtype)
    unit = torch.finfo(dtype).eps
    actual = (exact + torch.tensor([units * unit, 0, 0, 0])).to(dtype)
    try:
        assert_as_good_as(actual, plain, exact)
        right = True
    except AssertionError:
        right = False
    assert (_ratio(actual, plain, exact, lowest=dtype) <= 1) == right == (units < 4.1)


def test_integers_must_be_the_same():
    tokens = torch.tensor([1, 2])
    assert _ratio(tokens, tokens, tokens, torch.float32) == 0
    assert _ratio(tokens + 1, tokens, tokens, torch.float32) == math.inf
