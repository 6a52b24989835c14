from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from tests.kernels.attention_cases import attention_case
from tests.kernels.decode_attention_cases import assert_decode_right, decode_case
from tests.support.memory import allocations

OPERATION = "decode_attention"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def launched(case, device, **options):
    """The implementation itself, as the generator calls it: without the registered operation's checks."""
    options = {"scale": 0.2, "window": None, "softcap": None} | options
    tensors = [item.to(device) for item in case.values()]
    return dispatch.choose("decode_attention", *tensors)(*tensors, *options.values())


def test_two_positions_by_hand(device):
    # Blocks of one position, the row's first in block 2, its second in block 0. Scores 0.5 x 2 x 0 = 0 and
    # 0.5 x 2 log 3 = log 3, weights 1/4 and 3/4: output v_0 / 4 + 3 v_1 / 4.
    query, cache = torch.zeros(1, 1, 16, device=device), torch.zeros(3, 1, 1, 16, device=device)
    query[0, 0, 1] = 2
    key_cache, value_cache = cache.clone(), cache.clone()
    key_cache[0, 0, 0, 1] = math.log(3)
    value_cache[2, 0, 0, 0], value_cache[0, 0, 0, 1] = 4, 8
    table = torch.tensor([[2, 0]], dtype=torch.int32, device=device)
    lengths = torch.tensor([2], dtype=torch.int32, device=device)
    output = kernels.decode_attention(query, key_cache, value_cache, table, lengths, scale=0.5)
    assert output[0, 0, :2].tolist() == pytest.approx([1, 6], rel=1e-6)
    assert not output[0, 0, 2:].any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("lengths", [(1,), (16, 1, 0, 17), (33, 127), (129, 64, 65)], ids=str)
def test_as_good_as_plain_on_ragged_lengths(device, dtype, lengths):
    assert_decode_right(decode_case(lengths, dtype=dtype), device)


@pytest.mark.parametrize("width", [16, 32, 64, 80, 96, 100, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_good_as_plain_at_every_head_dimension(device, dtype, width):
    assert_decode_right(decode_case((19, 34), width=width, dtype=dtype), device)


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (3, 3), (9, 3), (4, 1), (7, 1), (12, 1), (20, 1)])
def test_as_good_as_plain_for_grouped_heads(device, heads, key_heads):
    assert_decode_right(decode_case((5, 40), heads, key_heads), device)


@pytest.mark.parametrize("block_size", [1, 7, 16, 64, 256])
def test_as_good_as_plain_for_every_block_size(device, block_size):
    assert_decode_right(decode_case((5, 100, 64), block_size=block_size), device)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 7},
        {"window": 33},
        {"window": 1000},
        {"softcap": 1.5},
        {"scale": -0.3},
        {"window": 40, "softcap": 2.0, "scale": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_as_good_as_plain_with_every_option(device, dtype, options):
    assert_decode_right(decode_case((70, 9, 0), dtype=dtype), device, **options)


@pytest.mark.parametrize("options", [{}, {"window": 900}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rows_long_enough_to_be_split(device, dtype, options):
    case = decode_case((2100, 3, 700), heads=2, key_heads=1, width=32, block_size=64, dtype=dtype)
    assert_decode_right(case, device, **options)


@pytest.mark.parametrize("lengths", [(70, 9), (600, 1)], ids=str)
def test_every_config(triton_config, lengths):
    assert_decode_right(decode_case(lengths, width=16), triton_config, softcap=4.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_scores(device, dtype):
    case = decode_case((50, 700), dtype=dtype)
    case["query"] *= 500
    assert_decode_right(case, device)


def test_it_is_the_last_position_of_attention(device):
    sequence = attention_case((40,), 4, 2, 32)
    expected, _ = kernels.attention(
        **{name: item.to(device) if torch.is_tensor(item) else item for name, item in sequence.items()}
    )
    caches = [sequence[name].unflatten(0, (5, 8)).to(device) for name in ("key", "value")]
    table = torch.arange(5, dtype=torch.int32, device=device)[None]
    lengths = torch.tensor([40], dtype=torch.int32, device=device)
    output = kernels.decode_attention(sequence["query"][-1:].to(device), *caches, table, lengths)
    torch.testing.assert_close(output, expected[-1:], rtol=1e-5, atol=1e-5)


def test_caches_that_lie_side_by_side(device):
    case = decode_case((21, 36))
    both = torch.stack([case["key_cache"], case["value_cache"]], dim=1)
    assert_decode_right(case | {"key_cache": both[:, 0], "value_cache": both[:, 1]}, device)
    heads_first = {
        name: case[name].transpose(1, 2).contiguous().transpose(1, 2) for name in ("key_cache", "value_cache")
    }
    assert_decode_right(case | heads_first, device)


def test_other_strides_of_the_small_tensors(device):
    case = decode_case((21, 36, 3))
    case["query"] = case["query"].permute(1, 2, 0).contiguous().permute(2, 0, 1)
    case["block_table"] = case["block_table"].t().contiguous().t()
    case["lengths"] = case["lengths"].repeat_interleave(2)[::2]
    assert_decode_right(case, device)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0)], ids=str)
def test_empty(device, lengths):
    case = decode_case(lengths)
    output = kernels.decode_attention(**{name: item.to(device) for name, item in case.items()})
    assert output.shape == case["query"].shape and not output.any()
    nothing = {name: case[name][:0].to(device) for name in ("key_cache", "value_cache")}
    rest = {name: case[name].to(device) for name in ("query", "lengths")}
    output = kernels.decode_attention(**rest, **nothing, block_table=case["block_table"][:, :0].to(device))
    assert output.shape == case["query"].shape and not output.any()


@pytest.mark.parametrize("splitting", [False, True])
@pytest.mark.parametrize(
    ("wrong", "where"),
    [
        ({"block_table": -1}, "first"),
        ({"block_table": 10**9}, "first"),
        ({"block_table": -(2**31)}, "last"),
        ({"lengths": -1}, None),
        ({"lengths": 10**6}, None),
    ],
    ids=str,
)
def test_an_index_out_of_range_gives_that_row_nan_and_reads_nothing(device, wrong, where, splitting):
    length = 1500 if splitting else 40
    case = decode_case((length, length))
    clean = launched(case, device)
    ((name, value),) = wrong.items()
    if name == "lengths":
        case["lengths"][0] = value
    else:
        case["block_table"][0, 0 if where == "first" else (length - 1) // 16] = value
    output = launched(case, device)
    assert output[0].isnan().all()
    assert torch.equal(output[1], clean[1])


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 60), min_size=1, max_size=4),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2)]),
    width=st.sampled_from([1, 8, 40]),
    block_size=st.integers(1, 20),
    window=st.one_of(st.none(), st.integers(1, 50)),
    softcap=st.one_of(st.none(), st.floats(0.5, 50)),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_property_as_good_as_plain(lengths, heads, width, block_size, window, softcap, seed, dtype):
    case = decode_case(lengths, *heads, width, block_size, dtype, spare=seed % 3, seed=seed)
    assert_decode_right(case, "cpu", window=window, softcap=softcap)


def test_memory_does_not_grow_with_the_cache(device):
    if dispatch.forced_backend() == "reference":
        pytest.skip("the reference gathers a row's keys and values")
    case = {name: item.to(device) for name, item in decode_case((500, 400), width=64).items()}
    used = allocations(lambda: launched(case, device))
    output = case["query"].numel() * 4
    assert used.kept == output and used.peak <= 8 * output


@pytest.mark.parametrize("options", [(0.2, None, None), (0.2, 5, 2.0)], ids=str)
def test_opcheck(device, options):
    tensors = [item.nan_to_num(0.5).to(device) for item in decode_case((4, 20)).values()]
    torch.library.opcheck(torch.ops.fastrlhf.decode_attention.default, (*tensors, *options))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_and_fake_tensors(dtype):
    case = decode_case((5, 7), dtype=dtype)
    output = kernels.decode_attention(**{name: item.to("meta") for name, item in case.items()})
    assert output.shape == (2, 4, 32) and output.dtype == dtype
    with FakeTensorMode() as mode:
        fakes = {name: mode.from_tensor(item) for name, item in case.items()}
        assert kernels.decode_attention(**fakes).shape == (2, 4, 32)


def test_compiles_whole(device):
    case = {name: item.to(device) for name, item in decode_case((5, 7)).items()}

    def scaled(**case):
        return 2 * kernels.decode_attention(**case, window=4)

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**case), scaled(**case))


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


CACHE = torch.zeros(6, 4, 2, 8)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": torch.zeros(2, 8)}, ValueError, r"query has shape \[2, 8\], expected \[B, H, D\]"),
        ({"query": torch.zeros(2, 4, 8).int()}, TypeError, r"query has dtype torch\.int32, expected one of"),
        (
            {"key_cache": CACHE[0]},
            ValueError,
            r"key_cache has shape \[4, 2, 8\], expected \[blocks, block_si",
        ),
        ({"value_cache": CACHE[1:]}, ValueError, r"value_cache has shape \[5, .* = \[6, 4, 2, 8\]"),
        ({"key_cache": CACHE.half()}, TypeError, r"key_cache has dtype torch\.float16.*torch\.float32"),
        (
            {"key_cache": CACHE.mT.contiguous().mT},
            ValueError,
            r"key_cache has strides \(64, 16, 1, 2\), expected a last stride of one",
        ),
        ({"query": torch.zeros(2, 3, 8)}, ValueError, r"query has 3 heads and key has 2, expected a divisor"),
        ({"query": torch.zeros(2, 4, 9)}, ValueError, r"key_cache has shape .* = \[6, 4, 2, 9\]"),
        (
            {"block_table": int32(0, 1)},
            ValueError,
            r"block_table has shape \[2\], expected \[B, max_blocks\]",
        ),
        ({"block_table": int32(0, 1)[None]}, ValueError, r"block_table has shape \[1, 2\], .* = \[2, 2\]"),
        ({"block_table": torch.zeros(2, 3).long()}, TypeError, r"block_table has dtype torch\.int64"),
        ({"lengths": int32(1)}, ValueError, r"lengths has shape \[1\], expected \[B\] = \[2\]"),
        ({"lengths": torch.ones(2)}, TypeError, r"lengths has dtype torch\.float32, expected one of .*int32"),
        ({"lengths": int32(1, 13)}, IndexError, r"lengths lie in \[1, 13\], expected \[0, 12\]"),
        ({"lengths": int32(-1, 1)}, IndexError, r"lengths lie in \[-1, 1\], expected \[0, 12\]"),
        (
            {"block_table": int32(0, 1, 9, 2, 6, 9).view(2, 3)},
            IndexError,
            r"block_table's entries lie in \[0, 6\], expected \[0, 6\)",
        ),
        ({"window": 0}, ValueError, r"window is 0, expected at least 1"),
        ({"softcap": -1.0}, ValueError, r"softcap is -1\.0, expected more than 0"),
        ({"lengths": int32(1, 1).to("meta")}, ValueError, r"query on cpu.*lengths on meta"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    fitting = {
        "query": torch.zeros(2, 4, 8),
        "key_cache": CACHE,
        "value_cache": CACHE,
        "block_table": int32(0, 1, 9, 2, 3, 9).view(2, 3),
        "lengths": int32(1, 8),
    }
    with pytest.raises(error, match=message):
        kernels.decode_attention(**fitting | changes)
