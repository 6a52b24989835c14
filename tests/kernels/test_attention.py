from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.attention import _attention
from tests.kernels.attention_cases import (
    LEAVES,
    assert_attention_right,
    attention_case,
    moved,
    with_gradients,
)
from tests.support.memory import allocations

OPERATION = "attention"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def test_two_positions_by_hand(device):
    # Position 0 sees itself alone: output v_0, lse s_00 = 2 x 0.5 x 1 = 1. Position 1 has scores
    # s_10 = 0.5 x 2 x 0 = 0 and s_11 = 0.5 x 2 log 3 = log 3, weights 1/4 and 3/4: output v_0 / 4 + 3 v_1 / 4.
    query = torch.zeros(2, 1, 16, device=device)
    key, value = torch.zeros_like(query), torch.zeros_like(query)
    query[:, 0, :2] = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    key[:, 0, :2] = torch.tensor([[1.0, 0.0], [0.0, math.log(3)]])
    value[:, 0, :2] = torch.tensor([[4.0, 0.0], [0.0, 8.0]])
    cu_seqlens = torch.tensor([0, 2], dtype=torch.int32, device=device)
    value.requires_grad_()
    output, lse = kernels.attention(query, key, value, cu_seqlens, max_seqlen=2, scale=0.5)
    assert output[:, 0, :2].flatten().tolist() == pytest.approx([4, 0, 1, 6], rel=1e-6)
    assert not output[:, 0, 2:].any()
    assert lse.flatten().tolist() == pytest.approx([1, math.log(4)], rel=1e-6)
    (gradient,) = torch.autograd.grad(output[:, 0, 0].sum(), value)
    assert gradient[:, 0, 0].tolist() == pytest.approx([1.25, 0.75], rel=1e-6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "lengths", [(1,), (31, 33), (63, 1, 0, 65), (127,), (129, 2)], ids=lambda lengths: str(lengths)
)
def test_as_good_as_plain_on_ragged_lengths(device, dtype, lengths):
    assert_attention_right(attention_case(lengths, dtype=dtype), device)


@pytest.mark.parametrize("width", [16, 33, 64, 80, 96, 100, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_good_as_plain_at_every_head_dimension(device, dtype, width):
    assert_attention_right(attention_case((19, 34), width=width, dtype=dtype), device)


@pytest.mark.parametrize(("heads", "key_heads"), [(1, 1), (3, 3), (9, 3), (4, 1), (7, 1)])
def test_as_good_as_plain_for_grouped_heads(device, heads, key_heads):
    assert_attention_right(attention_case((5, 20), heads, key_heads), device)


@pytest.mark.parametrize(
    "options",
    [
        {"window": 1},
        {"window": 7},
        {"window": 40},
        {"window": 1000},
        {"softcap": 1.5},
        {"softcap": 30},
        {"scale": 0.3},
        {"scale": -1},
        {"window": 33, "softcap": 2.0, "scale": 0.5},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_as_good_as_plain_with_every_option(device, dtype, options):
    assert_attention_right(attention_case((70, 9), dtype=dtype), device, **options)


@pytest.mark.parametrize("options", [{}, {"window": 20, "softcap": 2.0}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_left_padding_is_as_if_it_were_not_there(device, dtype, options):
    assert_attention_right(
        attention_case((40, 40, 40, 0, 70), skip=(0, 13, 39, 0, 66), dtype=dtype), device, **options
    )


def test_padding_throughout_gives_zeros(device):
    case = attention_case((5, 40, 3), skip=(5, 40, 100))
    output, lse, *gradients = with_gradients(kernels.attention, case, device)
    assert not output.any() and (lse == -math.inf).all()
    assert not any(gradient.any() for gradient in gradients)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_what_padding_and_other_sequences_hold_goes_nowhere(device, poison):
    case = attention_case((20, 9, 40), skip=(3, 9, 25))
    clean = with_gradients(kernels.attention, case, device)
    padding = torch.cat([torch.arange(0, 3), torch.arange(20, 29), torch.arange(29, 54)])
    for name in LEAVES:
        case[name][padding] = poison
    for poisoned, expected in zip(with_gradients(kernels.attention, case, device), clean, strict=True):
        assert torch.equal(poisoned, expected)


@pytest.mark.parametrize("lengths", [(), (0,), (0, 0, 0)], ids=str)
def test_empty(device, lengths):
    case = attention_case(lengths)
    output, lse, *gradients = with_gradients(kernels.attention, case, device)
    assert output.shape == (0, 2, 32) and lse.shape == (0, 2)
    assert [gradient.shape for gradient in gradients] == [case[name].shape for name in LEAVES]


@pytest.mark.parametrize("options", [{}, {"softcap": 30.0}, {"window": 5}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_extreme_scores(device, dtype, options):
    # Whole numbers: the scores, up to 8,192 either way and 64 apart, are exact, and the test is about the softmax.
    case = attention_case((50,), dtype=dtype)
    keys = torch.randperm(257, generator=torch.Generator().manual_seed(0))[:50] - 128
    for name, numbers in (("query", 64 - 128 * (torch.arange(50) % 3 == 0)), ("key", keys)):
        case[name] = torch.zeros_like(case[name])
        case[name][..., 0] = numbers[:, None].to(dtype)
    assert_attention_right(case, device, scale=1.0, **options)


def test_a_query_that_is_nan_spoils_its_own_output_alone(device):
    case = moved(attention_case((40,)), device)
    clean, _ = kernels.attention(**case)
    case["query"][7] = math.nan
    output, lse = kernels.attention(**case)
    others = [i for i in range(40) if i != 7]
    assert output[7].isnan().all() and lse[7].isnan().all()
    assert torch.equal(output[others], clean[others])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_views_of_a_fused_projection(device, dtype):
    case = attention_case((21, 36), heads=4, key_heads=2, dtype=dtype)
    fused = torch.cat([case[name].flatten(1) for name in LEAVES], dim=1)
    q, k, v = fused.split([4 * 32, 2 * 32, 2 * 32], dim=1)
    views = {
        "query": q.unflatten(1, (4, 32)),
        "key": k.unflatten(1, (2, 32)),
        "value": v.unflatten(1, (2, 32)),
    }
    assert_attention_right(case | views, device)


def test_other_strides(device):
    case = attention_case((21, 36), heads=4, key_heads=2)
    turned = {name: case[name].permute(1, 2, 0).contiguous().permute(2, 0, 1) for name in LEAVES}
    assert_attention_right(case | turned, device)
    expanded = {"key": case["key"][:1].expand(57, 2, 32), "value": case["value"][:, :1].expand(57, 2, 32)}
    assert_attention_right(case | expanded, device)


def test_gradient_that_is_not_contiguous(device):
    case = attention_case((21, 36))
    results = []
    for gradient in (torch.ones(1, 1, 1).expand(57, 2, 32), torch.ones(57, 2, 32)):
        here = moved(case, device)
        leaves = [here[name].requires_grad_() for name in LEAVES]
        output, _ = kernels.attention(**here)
        results.append(torch.autograd.grad(output, leaves, gradient.to(device)))
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


def test_a_max_seqlen_that_is_larger_changes_nothing(device):
    case = attention_case((21, 36))
    for larger, exact in zip(
        with_gradients(kernels.attention, case | {"max_seqlen": 100}, device),
        with_gradients(kernels.attention, case, device),
        strict=True,
    ):
        torch.testing.assert_close(larger, exact, rtol=1e-6, atol=1e-6)


def test_a_padded_batch_is_a_packed_one(device):
    case = attention_case((12, 12, 12), skip=(0, 5, 12))
    mask = torch.arange(12) >= case["skip"][:, None]
    expected, _, *gradients = with_gradients(kernels.attention, case, device, window=4)

    def batched(query, key, value, **_):
        rows = (tensor.unflatten(0, (3, 12)) for tensor in (query, key, value))
        output = kernels.left_padded_attention(*rows, kernels.left_padding(mask.to(device)), window=4)
        return output.flatten(0, 1), None

    output, _, *of_batch = with_gradients(batched, case, device)
    assert torch.equal(output, expected)
    for one, other in zip(of_batch, gradients, strict=True):
        assert torch.equal(one, other)


def test_a_padded_batch_is_not_copied(device):
    if dispatch.forced_backend() == "reference":
        pytest.skip("the reference repeats the heads of keys and values")
    rows = torch.randn(4, 64, 6, 32).to(device)
    query, key, value = rows[:, :, :4], rows[:, :, 4:5], rows[:, :, 5:]
    used = allocations(lambda: kernels.left_padded_attention(query, key, value))
    assert used.peak < 1.2 * query.numel() * 4, "the output, and a few numbers a row"


def test_left_padding_counts_the_zeros_in_front():
    mask = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 0, 0]])
    assert kernels.left_padding(mask).tolist() == kernels.left_padding(mask.bool()).tolist() == [2, 0, 3]
    assert kernels.left_padding(mask).dtype == torch.int32
    with pytest.raises(ValueError, match="attention_mask has a zero after a one, expected left padding"):
        kernels.left_padding(1 - mask)
    with pytest.raises(ValueError, match=r"attention_mask has shape \[3\], expected \[B, T\]"):
        kernels.left_padding(mask[0])


@settings(max_examples=30, deadline=None)
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    padded=st.floats(0, 1.2),
    heads=st.sampled_from([(1, 1), (2, 1), (6, 2)]),
    width=st.sampled_from([1, 8, 40]),
    window=st.one_of(st.none(), st.integers(1, 50)),
    softcap=st.one_of(st.none(), st.floats(0.5, 50)),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float64, torch.float32]),
)
def test_property_as_good_as_plain(lengths, padded, heads, width, window, softcap, seed, dtype):
    skip = tuple(int(padded * length) for length in lengths)
    case = attention_case(lengths, *heads, width, dtype, skip, seed)
    assert_attention_right(case, "cpu", window=window, softcap=softcap)


@pytest.mark.parametrize("options", [{}, {"window": 3, "softcap": 2.0}], ids=str)
def test_gradcheck(device, options):
    case = attention_case((4, 0, 3), 2, 1, 4, torch.float64, skip=(1, 0, 0))
    case = moved(case, device)
    leaves = [case.pop(name).requires_grad_() for name in LEAVES]
    assert torch.autograd.gradcheck(lambda *qkv: kernels.attention(*qkv, **case, **options).output, leaves)


def test_memory_grows_with_the_length_not_its_square(device):
    def used(length):
        case = attention_case((length,), heads=2, key_heads=2, width=32)
        case = moved(case, device)
        forward = allocations(lambda: kernels.attention(**case))
        both = allocations(lambda: with_gradients(kernels.attention, case, device))
        return forward, both

    if dispatch.forced_backend() == "reference":
        pytest.skip("the reference holds one sequence's scores")
    lengths = 64, 192
    for short, long in zip(*(used(length) for length in lengths), strict=True):
        per_token = (long.peak - short.peak) / (lengths[1] - lengths[0])
        tensor = 2 * 32 * 4
        assert per_token <= 8 * tensor, (
            "the outputs and gradients, the weights of the sum and a few numbers a row"
        )


def test_the_backward_keeps_inputs_and_outputs_and_nothing_else(device):
    case = moved(attention_case((64,), skip=(3,)), device)
    case["query"].requires_grad_()
    output, lse = kernels.attention(**case)
    kept = {tensor.data_ptr() for tensor in output.grad_fn.saved_tensors}
    given = {item.data_ptr() for item in case.values() if torch.is_tensor(item)}
    assert kept == given | {output.data_ptr(), lse.data_ptr()}


def test_the_lse_is_not_differentiable(device):
    case = attention_case((5,))
    case = moved(case, device)
    case["query"].requires_grad_()
    output, lse = kernels.attention(**case)
    assert output.requires_grad and not lse.requires_grad


@pytest.mark.parametrize("padded", [False, True])
def test_opcheck(device, padded):
    case = attention_case((4, 3), skip=(1, 0))
    query, key, value, cu_seqlens, max_seqlen, skip = (
        item.to(device) if torch.is_tensor(item) else item for item in case.values()
    )
    rest = (cu_seqlens, skip if padded else None, max_seqlen, 0.5, 3, 2.0)
    output, lse = _attention(query, key, value, *rest)
    torch.library.opcheck(
        torch.ops.fastrlhf.attention_backward.default,
        (torch.ones_like(output), query, key, value, output, lse, *rest),
    )
    leaves = [tensor.requires_grad_() for tensor in (query, key, value)]
    torch.library.opcheck(torch.ops.fastrlhf.attention.default, (*leaves, *rest))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_and_fake_tensors(dtype):
    case = attention_case((5, 7), dtype=dtype, skip=(0, 1))
    output, lse, *gradients = with_gradients(kernels.attention, case, "meta")
    assert output.shape == (12, 2, 32) and output.dtype == dtype
    assert lse.shape == (12, 2) and lse.dtype == torch.promote_types(dtype, torch.float32)
    for name, gradient in zip(LEAVES, gradients, strict=True):
        assert gradient.shape == case[name].shape and gradient.dtype == dtype
    with FakeTensorMode() as mode:
        fakes = {
            name: mode.from_tensor(value) if torch.is_tensor(value) else value for name, value in case.items()
        }
        assert kernels.attention(**fakes).output.shape == (12, 2, 32)


def test_compiles_whole(device):
    case = attention_case((5, 7), skip=(0, 2))

    def scaled(**case):
        return kernels.attention(**(case | {"query": 2 * case["query"]}), window=4)

    compiled = torch.compile(scaled, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(with_gradients(compiled, case, device), with_gradients(scaled, case, device))


def int32(*numbers):
    return torch.tensor(numbers, dtype=torch.int32)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": torch.zeros(6, 8)}, ValueError, r"query has shape \[6, 8\], expected \[T, H, D\]"),
        ({"query": torch.zeros(6, 4, 8).int()}, TypeError, r"query has dtype torch\.int32, expected one of"),
        ({"key": torch.zeros(6, 16)}, ValueError, r"key has shape \[6, 16\], expected \[T, Hk, D\]"),
        (
            {"key": torch.zeros(5, 2, 8)},
            ValueError,
            r"key has shape \[5, 2, 8\], .*\[T, Hk, D\] = \[6, 2, 8\]",
        ),
        ({"value": torch.zeros(6, 1, 8)}, ValueError, r"value has shape \[6, 1, 8\], .* = \[6, 2, 8\]"),
        (
            {"value": torch.zeros(6, 2, 8).half()},
            TypeError,
            r"value has dtype torch\.float16.*torch\.float32",
        ),
        (
            {"key": torch.zeros(6, 3, 8), "value": torch.zeros(6, 3, 8)},
            ValueError,
            r"query has 4 heads and key has 3, expected a divisor of 4",
        ),
        (
            {"key": torch.zeros(6, 0, 8), "value": torch.zeros(6, 0, 8)},
            ValueError,
            r"query has 4 heads and key has 0",
        ),
        ({"cu_seqlens": int32()}, ValueError, r"entries of cu_seqlens is 0, expected at least 1"),
        ({"cu_seqlens": torch.tensor([0, 6])}, TypeError, r"cu_seqlens has dtype torch\.int64.*torch\.int32"),
        (
            {"cu_seqlens": int32(0, 4)},
            ValueError,
            r"cu_seqlens is \[0, 4\], expected to rise from 0 to T = 6",
        ),
        ({"cu_seqlens": int32(1, 6)}, ValueError, r"cu_seqlens is \[1, 6\], expected to rise"),
        ({"cu_seqlens": int32(0, 7)}, ValueError, r"cu_seqlens is \[0, 7\], expected to rise"),
        ({"cu_seqlens": int32(0, 5, 4, 6)}, ValueError, r"cu_seqlens is \[0, 5, 4, 6\], expected to rise"),
        (
            {"cu_seqlens": int32(*[0] * 9, 5)},
            ValueError,
            r"cu_seqlens is \[0, 0, 0, 0, 0, 0, 0, \.\.\., 5\], expected to rise",
        ),
        ({"max_seqlen": 3}, ValueError, r"max_seqlen is 3, and cu_seqlens has a sequence of 4"),
        ({"max_seqlen": -1}, ValueError, r"max_seqlen is -1, expected at least 0"),
        ({"skip": int32(0)}, ValueError, r"skip has shape \[1\], expected \[S\] = \[2\]"),
        ({"skip": torch.zeros(2)}, TypeError, r"skip has dtype torch\.float32"),
        ({"skip": int32(0, -1)}, ValueError, r"skip is \[0, -1\], expected no negative number"),
        ({"window": 0}, ValueError, r"window is 0, expected at least 1"),
        ({"softcap": 0.0}, ValueError, r"softcap is 0\.0, expected more than 0"),
        ({"key": torch.zeros(6, 2, 8, device="meta")}, ValueError, r"query on cpu, key on meta"),
        (
            {name: torch.zeros(6, 2, 0) for name in LEAVES},
            ValueError,
            r"the head dimension is 0, expected at least 1",
        ),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    fitting = {
        "query": torch.zeros(6, 4, 8),
        "key": torch.zeros(6, 2, 8),
        "value": torch.zeros(6, 2, 8),
        "cu_seqlens": int32(0, 2, 6),
        "max_seqlen": 4,
    }
    with pytest.raises(error, match=message):
        kernels.attention(**fitting | changes)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((2, 3, 8), (2, 3, 1, 8)), r"query has shape \[2, 3, 8\], expected \[B, T, H, D\]"),
        (((2, 3, 1, 8), (6, 1, 8)), r"key has shape \[6, 1, 8\], expected \[B, T, Hk, D\]"),
        (((2, 3, 1, 8), (3, 2, 1, 8)), r"key has shape \[3, 2, 1, 8\], .*\[B, T, Hk, D\] = \[2, 3, 1, 8\]"),
    ],
)
def test_errors_of_a_padded_batch(shapes, message):
    query, key = map(torch.zeros, shapes)
    with pytest.raises(ValueError, match=message):
        kernels.left_padded_attention(query, key, key)
