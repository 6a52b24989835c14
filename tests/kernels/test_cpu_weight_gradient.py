"""The C++ kernel of a weight's gradient: every version, and the bits that do not depend on the threads."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.kernels import native
from tests.support.precision import assert_as_good_as

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)
# Around the tiles (6 or 12 rows by 8 to 32 columns), the pieces of 128 rows, and the blocks of 192.
SHAPES = [(1, 1, 1), (2, 13, 33), (127, 12, 32), (129, 5, 31), (300, 205, 40), (257, 385, 65)]


def operands(rows, out, width):
    torch.manual_seed(0)
    return torch.randn(rows, out), torch.randn(rows, width)


def into(found, grad, x):
    native.module("_cpu").weight_gradient(
        grad.data_ptr(), x.data_ptr(), found.data_ptr(), len(x), grad.shape[1], x.shape[1]
    )
    return found


def weight_gradient(grad, x):
    return into(torch.full((grad.shape[1], x.shape[1]), torch.nan), grad, x)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_as_good_as_plain(instructions, shape):
    grad, x = operands(*shape)
    assert_as_good_as(weight_gradient(grad, x), grad.T @ x, grad.double().T @ x.double())


@pytest.mark.parametrize("shape", [(0, 3, 5), (4, 0, 5), (4, 3, 0)], ids=str)
def test_empty(instructions, shape):
    grad, x = operands(*shape)
    assert torch.equal(weight_gradient(grad, x), grad.T @ x)


def test_the_number_of_threads_changes_no_bit(instructions, threads):
    grad, x = operands(300, 205, 140)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(weight_gradient(grad, x))
    assert all(torch.equal(result, results[0]) for result in results)


def test_nothing_is_written_beyond_the_output(instructions):
    grad, x = operands(140, 13, 33)
    guarded = torch.full((15, 33), 7.0)
    into(guarded[1:14], grad, x)
    assert (guarded[[0, 14]] == 7).all()
    torch.testing.assert_close(guarded[1:14], grad.T @ x)
