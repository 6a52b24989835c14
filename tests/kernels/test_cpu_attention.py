"""What is the C++ kernels' own: tiles and blocks of theirs, both versions of the code, and threads."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import native
from tests.kernels.attention_cases import LEAVES, assert_attention_right, attention_case, with_gradients

pytestmark = pytest.mark.skipif(
    native.missing("_cpu") is not None, reason=f"fastrlhf._cpu: {native.missing('_cpu')}"
)


@pytest.fixture(autouse=True)
def on_the_cpu_backend():
    with kernels.using("cpu"):
        yield


@pytest.mark.parametrize("options", [{}, {"window": 100}, {"window": 3}, {"softcap": 3.0}], ids=str)
@pytest.mark.parametrize(
    ("lengths", "heads", "key_heads", "width"),
    [((97, 192, 95), 2, 2, 16), ((193, 5), 6, 2, 24), ((96, 300), 7, 1, 33), ((40,), 40, 1, 8)],
)
def test_several_tiles_and_blocks(vectors, lengths, heads, key_heads, width, options):
    assert_attention_right(attention_case(lengths, heads, key_heads, width), "cpu", **options)


@pytest.mark.parametrize("options", [{}, {"window": 50, "softcap": 5.0}], ids=str)
def test_several_tiles_behind_padding(vectors, options):
    case = attention_case((150, 250, 7), 6, 3, 40, skip=(140, 100, 7))
    assert_attention_right(case, "cpu", **options)


@pytest.mark.parametrize("width", range(1, 20))
def test_every_remainder_of_the_head_dimension(vectors, width):
    assert_attention_right(attention_case((21,), width=width), "cpu")


def test_the_number_of_threads_changes_no_bit(vectors):
    case = attention_case((300, 1, 200, 97), 6, 2, 32, skip=(0, 0, 50, 0))
    before, results = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3, 5):
            torch.set_num_threads(count)
            results.append(with_gradients(kernels.attention, case))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for name, one, other in zip(("output", "lse", *LEAVES), result, results[0], strict=True):
            assert torch.equal(one, other), name


def test_nothing_around_a_view_is_read():
    case = attention_case((33, 50), 2, 1, 20)
    frame = torch.full((83, 4, 28), float("nan"))
    frame[:, 1:3, 4:24] = case["query"]
    expected = with_gradients(kernels.attention, case)
    for one, other in zip(
        with_gradients(kernels.attention, case | {"query": frame[:, 1:3, 4:24]}), expected, strict=True
    ):
        assert torch.equal(one, other)
