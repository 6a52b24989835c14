"""What the C++ kernels of norms, rotary embedding and gated units promise beyond the operations' own tests."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu

from fastrlhf.kernels import native
from fastrlhf.kernels.cases import cases
from fastrlhf.kernels.dispatch import implementation
from fastrlhf.kernels.verify import error_ratio

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)

OPERATIONS = ("norm", "norm_backward", "glu", "glu_backward", "rope", "rope_inplace")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_every_version_is_right(instructions, operation):
    for name, args in cases(operation, torch.float32).items():
        kernel = implementation(operation, "cpu", *args)
        assert error_ratio(kernel, operation, args, args) <= 1, name


@pytest.mark.parametrize("rows", [1, 63, 65, 5000])
@pytest.mark.parametrize("columns", [7, 576])
def test_the_weight_gradient_has_the_same_bits_for_every_number_of_threads(threads, rows, columns):
    backward = implementation("norm_backward", "cpu", torch.empty(0))
    torch.manual_seed(0)
    # Of many magnitudes, so that the order of a sum shows.
    gradient = torch.randn(rows, columns) * torch.exp2(torch.randint(-20, 20, (rows, 1)))
    x, weight, mean, rstd = torch.randn(rows, columns), torch.randn(columns), *torch.rand(2, rows)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(backward(gradient, None, x, weight, mean, rstd, 0.0, True))
    for result in results[1:]:
        assert all(torch.equal(one, other) for one, other in zip(result, results[0], strict=True))


def test_the_weight_gradient_of_many_rows_keeps_its_digits():
    rows = 200_000
    backward = implementation("norm_backward", "cpu", torch.empty(0))
    ones = torch.ones(rows, 1)
    _, grad_weight, grad_bias = backward(
        ones * 0.1, None, ones, torch.ones(1), torch.zeros(rows), torch.ones(rows), 0.0, True
    )
    exact = rows * torch.tensor(0.1).double()
    for total in (grad_weight, grad_bias):
        assert (total.double() - exact).abs() <= 1e-6 * exact


@pytest.mark.parametrize("activation", ["gelu", "gelu_tanh"])
def test_gelu_keeps_its_digits_in_the_left_tail(instructions, activation):
    glu = implementation("glu", "cpu", torch.empty(0))
    gate = torch.linspace(-4, 4, 100_003)
    exact = gelu(gate.double(), approximate="tanh" if activation == "gelu_tanh" else "none")
    relative = (glu(gate, torch.ones_like(gate), activation).double() / exact - 1).abs()
    assert relative[exact != 0].max() < 2e-6
