"""What is the C++ kernel's own: parts of long rows, both versions of the code, and threads."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import native
from tests.kernels.decode_attention_cases import assert_decode_right, decode_case

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)


@pytest.fixture(autouse=True)
def on_the_cpu_backend():
    with kernels.using("cpu"):
        yield


@pytest.mark.parametrize("options", [{}, {"window": 513}, {"softcap": 3.0}], ids=str)
@pytest.mark.parametrize("lengths", [(511, 512, 513), (1025, 31, 0, 1)], ids=str)
def test_rows_of_several_parts(vectors, lengths, options):
    assert_decode_right(decode_case(lengths, 6, 2, 24), "cpu", **options)


@pytest.mark.parametrize("width", range(1, 50))
def test_every_remainder_of_the_head_dimension(vectors, width):
    assert_decode_right(decode_case((21, 40), width=width), "cpu")


def test_the_number_of_threads_changes_no_bit(vectors):
    case = decode_case((1500, 1, 600, 97), 6, 2, 32)
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(kernels.decode_attention(**case))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results[1:])
