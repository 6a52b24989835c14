"""The C++ product of many rows: every order of its operands, every width of vectors, and its low-rank part."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu import pool
from fastrlhf.kernels.cpu.matmul import LowRank, matmul
from tests.support.precision import assert_as_good_as

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)

# rows, columns, depth: one; ragged tiles; whole tiles of every width; pieces that end within and at a sum's longest run
SHAPES = [(1, 1, 1), (13, 33, 5), (48, 64, 128), (37, 70, 129), (5, 130, 256), (100, 3, 260)]
LONG = (14, 35, 2 * 2048 + 131)  # several blocks of a panel
DEEP = (230, 5, 1 << 15)  # more than the rows that are packed at a time, in the adapter too


@pytest.fixture(params=["avx512", "avx2", "portable"])
def vectors(request):
    """The versions of the kernel, where the processor has them."""
    module = native.module("_cpu")
    module.allow_avx512(request.param == "avx512")
    module.force_portable(request.param == "portable")
    yield request.param
    module.allow_avx512(True)
    module.force_portable(False)


def operands(shape, rank, dtype=torch.float32):
    """a, b, bias, down and up."""
    rows, columns, depth = shape
    generator = torch.Generator().manual_seed(0)
    sizes = ((rows, depth), (depth, columns), (columns,), (depth, rank), (rank, columns))
    return [torch.randn(size, generator=generator).to(dtype) for size in sizes]


def plain(a, b, bias, down, up):
    hidden = 0.5 * (a @ down)
    return torch.addmm(bias, a, b) + hidden @ up, hidden


def turned(matrix):
    """The same matrix, its transpose contiguous."""
    return matrix.T.contiguous().T


@pytest.mark.parametrize("shape", [*SHAPES, LONG], ids=str)
@pytest.mark.parametrize("rank", [0, 8, 40])
def test_as_good_as_plain_in_every_order(vectors, shape, rank):
    a, b, bias, down, up = tensors = operands(shape, rank)
    same, exact = plain(*tensors), plain(*(tensor.double() for tensor in tensors))
    for orders in range(16):
        held = [
            turned(matrix) if orders >> place & 1 else matrix for place, matrix in enumerate((a, b, down, up))
        ]
        found = matmul(held[0], held[1], bias, LowRank(*held[2:], 0.5))
        for name, *results in zip(("result", "hidden"), found, same, exact, strict=True):
            assert_as_good_as(*results, name=name)


def test_without_bias_and_low_rank():
    a, b, *_ = operands(SHAPES[3], 0)
    result, hidden = matmul(a, b)
    assert_as_good_as(result, a @ b, a.double() @ b.double())
    assert hidden.shape == (37, 0)


def test_few_rows_at_a_time():
    a, b, bias, down, up = tensors = operands(DEEP, 3)
    same, exact = plain(*tensors), plain(*(tensor.double() for tensor in tensors))
    for held in (a, turned(a)):
        found = matmul(held, b, bias, LowRank(down, up, 0.5))
        for name, *results in zip(("result", "hidden"), found, same, exact, strict=True):
            assert_as_good_as(*results, name=name)
    pool.trim()
    taken, _ = pool.pool_bytes()
    result = matmul(a, b)
    held, idle = pool.pool_bytes()
    assert held + idle - taken <= result[0].nbytes + (17 << 20)


@pytest.mark.parametrize("shape", [SHAPES[3], (400, 20, 60)], ids=str)
def test_the_number_of_threads_changes_no_bit(vectors, threads, shape):
    a, b, bias, down, up = operands(shape, 5)
    results = []
    for count in (1, 2, 3, 7):
        threads(count)
        results.append(torch.cat(matmul(a, b, bias, LowRank(down, up, 0.5)), dim=1))
    assert all(torch.equal(result, results[0]) for result in results)


def test_what_is_not_finite_stays_in_its_row_and_column():
    a, b, bias, down, up = operands((13, 33, 40), 3)
    a[5, 7], b[3, 30] = torch.nan, torch.inf
    result, hidden = matmul(a, b, bias, LowRank(down, up, 0.5))
    finite = torch.ones(13, 33, dtype=torch.bool)
    finite[5], finite[:, 30] = False, False
    assert torch.equal(result.isfinite(), finite)
    assert torch.equal(hidden.isfinite().all(dim=1), finite.any(dim=1))
