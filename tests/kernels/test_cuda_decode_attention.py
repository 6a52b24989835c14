"""The CUDA bodies of `decode_attention`, unmodified, on the CPU (see tests/support/cuda_on_cpu.h)."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.kernels.cuda.decode_attention import misfit
from fastrlhf.kernels.decode_attention_arguments import decode_attention_arguments
from fastrlhf.kernels.decode_splits import MOST_SPLITS, decode_splits
from tests.kernels.decode_attention_cases import assert_decode_right, decode_case
from tests.support.cuda_on_cpu import bodies

both_orders = pytest.mark.parametrize("reversed_threads", [False, True], ids=["forward", "reversed"])
DTYPES = [torch.float32, torch.bfloat16]


def body(splits=1, reversed_threads=False):
    """`kernels.decode_attention` by the CUDA bodies."""

    def decode_attention(
        query, key_cache, value_cache, block_table, lengths, scale=None, window=None, softcap=None
    ):
        assert misfit(query, key_cache, value_cache) is None
        scale = query.shape[2] ** -0.5 if scale is None else scale
        given = decode_attention_arguments(
            query, key_cache, value_cache, block_table, lengths, scale, window, softcap
        )
        bodies().decode_attention(
            query.dtype == torch.bfloat16,
            *given.arguments,
            splits,
            given.output.data_ptr(),
            reversed_threads,
        )
        return given.output

    return decode_attention


@both_orders
@pytest.mark.parametrize("splits", [1, 4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("options", [{}, {"window": 20, "softcap": 2.0}, {"scale": -0.4}], ids=str)
def test_as_good_as_plain(dtype, options, splits, reversed_threads):
    case = decode_case((70, 1, 0, 33), dtype=dtype)
    assert_decode_right(case, "cpu", body(splits, reversed_threads), **options)


@pytest.mark.parametrize("width", [8, 32, 40, 64, 80, 96, 128, 136, 256])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_number_of_lanes(dtype, width):
    assert_decode_right(decode_case((5, 50), width=width, dtype=dtype), "cpu", body())


@pytest.mark.parametrize(
    ("heads", "key_heads"), [(1, 1), (4, 2), (9, 3), (7, 1), (8, 1), (9, 1), (20, 1), (24, 2)]
)
@pytest.mark.parametrize("splits", [1, 2])
def test_grouped_heads(heads, key_heads, splits):
    assert_decode_right(decode_case((5, 20), heads, key_heads), "cpu", body(splits))


@pytest.mark.parametrize("lengths", [(511, 64), (17,)], ids=str)
@pytest.mark.parametrize("splits", [2, 64])
@pytest.mark.parametrize("block_size", [1, 7, 64])
def test_splits_and_block_sizes(lengths, splits, block_size):
    assert_decode_right(decode_case(lengths, 1, 1, 8, block_size), "cpu", body(splits))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_scores(dtype):
    case = decode_case((50, 70), dtype=dtype)
    case["query"] *= 500
    assert_decode_right(case, "cpu", body(2))


@pytest.mark.parametrize("splits", [1, 2])
@pytest.mark.parametrize(
    ("name", "at", "value"),
    [
        ("block_table", (0, 0), -1),
        ("block_table", (0, 2), 10**9),
        ("block_table", (0, 2), -(2**31)),
        ("lengths", (0,), -1),
        ("lengths", (0,), 65),
    ],
)
def test_an_index_out_of_range_gives_that_row_nan_and_reads_nothing(name, at, value, splits):
    case = decode_case((40, 40))
    clean = body(splits)(**case)
    case[name][at] = value
    output = body(splits)(**case)
    assert output[0].isnan().all()
    assert torch.equal(output[1], clean[1])


def test_tensors_that_16_byte_loads_cannot_read_are_refused_with_a_reason():
    def refusal(width, dtype, start=0, heads=2):
        cache = torch.zeros(start + 2 * 4 * heads * width, dtype=dtype)[start:].view(2, 4, heads, width)
        return misfit(torch.zeros(1, heads, width, dtype=dtype), cache, cache)

    assert refusal(64, torch.bfloat16) is None and refusal(100, torch.float32) is None
    assert "multiples of 8, not 100" in refusal(100, torch.bfloat16)
    assert "up to 256 that are multiples of 4, not 260" in refusal(260, torch.float32)
    assert "begin at multiples of 16 bytes" in refusal(64, torch.float32, start=1)
    odd = torch.zeros(2, 4, 2, 65)[..., :64]
    assert "begin at multiples of 16 bytes" in misfit(torch.zeros(1, 2, 64), odd, odd)


def test_rows_are_split_where_there_are_few_and_they_may_be_long():
    assert decode_splits(8, 200, None) == 1
    assert decode_splits(8, 8192, None) == 32
    assert decode_splits(8, 8192, 1024) == 4
    assert decode_splits(1, 10**6, None) == MOST_SPLITS
    assert decode_splits(1000, 8192, None) == decode_splits(0, 0, None) == 1
