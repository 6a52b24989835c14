"""The C++ kernel of thin products: every width of vectors, and the bits that do not depend on the batch."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.linear import thin_linear
from tests.kernels.test_linear import SHAPES, assert_right
from tests.support.layers import layer
from tests.support.precision import assert_as_good_as

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)


@pytest.fixture(params=[512, 256, 128])
def vectors(request):
    """Vectors of so many bits, where the processor has them; 128 is the portable version."""
    module = native.module("_cpu")
    module.limit_linear_vectors(request.param)
    if module.linear_vectors() != request.param:
        module.limit_linear_vectors(512)
        pytest.skip(f"this processor has no vectors of {request.param} bits")
    yield request.param
    module.limit_linear_vectors(512)


@pytest.mark.parametrize("base", ["float32", "int8"])
def test_every_shape_with_every_width_of_vectors(vectors, base):
    for rows, out, width in [*SHAPES, (6, 64, 256), (7, 67, 4096), (13, 130, 15), (32, 65, 16)]:
        assert_right(*layer((rows, out, width), base), "cpu")


@pytest.mark.parametrize("base", ["float32", "int8", "nf4"])
def test_a_row_has_the_same_bits_in_every_batch(vectors, base):
    x, weight, bias = layer((32, 75, 139), base)
    whole = kernels.linear(x, weight, bias)
    for rows in range(1, 32):
        assert torch.equal(kernels.linear(x[:rows], weight, bias), whole[:rows]), rows
        assert torch.equal(kernels.linear(x[-rows:], weight, bias), whole[-rows:]), rows


@pytest.mark.parametrize("base", ["float32", "int8", "nf4"])
def test_the_number_of_threads_changes_no_bit(vectors, threads, base):
    x, weight, bias = layer((9, 515, 139), base)
    results = []
    for count in (1, 2, 3, 5):
        threads(count)
        results.append(kernels.linear(x, weight, bias))
    assert all(torch.equal(result, results[0]) for result in results)


def test_more_rows_than_a_thin_batch_have_the_same_bits(vectors):
    x, weight, bias = layer((100, 75, 139), "float32")
    whole = thin_linear(x, weight, bias)
    for rows in (1, 31, 33, 64, 99):
        assert torch.equal(thin_linear(x[-rows:], weight, bias), whole[-rows:]), rows


@pytest.mark.parametrize("portable", [False, True])
def test_a_transposed_weight(portable):
    """As GPT-2's layers hold theirs: the error is at most twice PyTorch's, and a row's bits are its own."""
    native.module("_cpu").force_portable(portable)
    try:
        for rows, out, width in [*SHAPES, (33, 67, 129)]:
            x, weight, bias = layer((rows, out, width), "float32")
            held = weight.T.contiguous()
            found = thin_linear(x, held, bias, transposed=True)
            plain, exact = (
                torch.nn.functional.linear(*(part.to(to) for part in (x, weight, bias)))
                for to in (torch.float32, torch.float64)
            )
            assert_as_good_as(found, plain, exact)
            for count in range(1, min(rows, 6)):
                assert torch.equal(thin_linear(x[-count:], held, bias, transposed=True), found[-count:])
    finally:
        native.module("_cpu").force_portable(False)


def test_nothing_is_written_beyond_the_output(vectors):
    """The last rows of the weight do not fill a tile, and the output lies between guards."""
    module = native.module("_cpu")
    for out in (1, 63, 65, 130):
        x, weight, _ = layer((5, out, 19))
        y = torch.full((7 * out,), 7.0)
        module.thin_linear(x.data_ptr(), weight.data_ptr(), 0, 0, 0, y[out:].data_ptr(), 5, out, 19, False)
        assert (y[:out] == 7).all() and (y[6 * out :] == 7).all()
        torch.testing.assert_close(y[out : 6 * out].view(5, out), x @ weight.T)
