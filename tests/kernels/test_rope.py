from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig
from transformers.models.gpt_neox.modeling_gpt_neox import apply_rotary_pos_emb
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from fastrlhf import kernels
from tests.support.memory import allocations
from tests.support.precision import assert_as_good_as

OPERATION = "rope"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Shape of the queries, key heads, elements rotated.
SHAPES = [
    ((1, 1, 2), 1, 2),
    ((31, 3, 64), 1, 64),
    ((33, 4, 20), 2, 6),
    ((5, 9, 48), 9, 48),
    ((2, 7, 3, 32), 3, 8),
    ((3, 16), 2, 16),
    ((4, 3, 10), 2, 0),
]


def tensors(shape, key_heads, rotated, dtype=torch.float32, seed=0):
    """Query, key, cos, sin. The angles' halves are alike, as transformers makes them."""
    torch.manual_seed(seed)
    *leading, _, width = shape
    angles = 100 * torch.rand(*leading, rotated // 2)
    angles = torch.cat([angles, angles], dim=-1)
    made = torch.randn(shape), torch.randn(*leading, key_heads, width), angles.cos(), angles.sin()
    return [tensor.to(dtype) for tensor in made]


def plain(query, key, cos, sin):
    """As the GPT-NeoX of transformers has it, which rotates a part of a head."""
    return apply_rotary_pos_emb(query, key, cos, sin, unsqueeze_dim=-2)


def inplace(query, key, cos, sin):
    query, key = query.clone(), key.clone()
    kernels.rope_inplace(query, key, cos, sin)
    return query, key


def with_gradients(function, query, key, cos, sin, device="cpu", dtype=None):
    leaves = [tensor.to(device, dtype).detach().requires_grad_() for tensor in (query, key)]
    outputs = function(*leaves, cos.to(device, dtype), sin.to(device, dtype))
    torch.manual_seed(1)
    grads = [torch.randn(out.shape).to(query.dtype).to(out) for out in outputs]
    return *outputs, *torch.autograd.grad(outputs, leaves, grads)


def assert_right(given_tensors, device):
    actual = with_gradients(kernels.rope, *given_tensors, device)
    same = with_gradients(plain, *given_tensors)
    exact = with_gradients(plain, *given_tensors, dtype=torch.float64)
    for name, *results in zip(("query", "key", "grad_query", "grad_key"), actual, same, exact, strict=True):
        assert_as_good_as(*results, name=name)
    with torch.no_grad():
        changed = inplace(*(tensor.to(device) for tensor in given_tensors))
    for name, one, other in zip(("query", "key"), changed, actual, strict=False):
        assert torch.equal(one, other), f"{name} in place"


def test_a_quarter_turn_by_hand(device):
    # R = 4 of 5 elements: element 0 turns with 2 by 90 degrees, 1 with 3 by 180; the last stays.
    query = torch.tensor([[[1.0, 2.0, 3.0, 4.0, 5.0], [0.0, 1.0, 0.0, 0.0, 7.0]]], device=device)
    cos, sin = (torch.tensor([half * 2], device=device) for half in ([0.0, -1.0], [1.0, 0.0]))
    turned = torch.tensor([[[-3.0, -2.0, 1.0, -4.0, 5.0], [0.0, -1.0, 0.0, 0.0, 7.0]]], device=device)
    out = kernels.rope(query, query[:, :1], cos, sin)
    assert torch.equal(out.query, turned) and torch.equal(out.key, turned[:, :1])
    assert query[0, 0, 0] == 1, "rope leaves its inputs as they are"
    kernels.rope_inplace(query, key := query[:, 1:].clone(), cos, sin)
    assert torch.equal(query, turned) and torch.equal(key, turned[:, 1:])


@pytest.mark.parametrize(("shape", "key_heads", "rotated"), SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain_on_ragged_shapes(device, dtype, shape, key_heads, rotated):
    assert_right(tensors(shape, key_heads, rotated, dtype), device)


def test_every_config(triton_config):
    assert_right(tensors((5, 3, 20), 2, 12), triton_config)


@pytest.mark.parametrize(
    "scaling",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 16,
        },
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda scaling: scaling["rope_type"],
)
def test_every_scaling_of_transformers_at_packed_positions(device, scaling):
    config = LlamaConfig(
        hidden_size=96,
        num_attention_heads=3,
        head_dim=32,
        max_position_embeddings=128,
        rope_parameters={"rope_theta": 10000.0, **scaling},
    )
    positions = torch.cat([torch.arange(5), torch.arange(60), torch.arange(1)])[None]
    query, key, *_ = tensors((66, 3, 32), 1, 32)
    cos, sin = LlamaRotaryEmbedding(config)(query, positions)
    assert_right((query, key, cos[0], sin[0]), device)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_cosines_in_float32(device, dtype):
    query, key, cos, sin = tensors((9, 3, 32), 1, 32)
    query, key = query.to(dtype), key.to(dtype)
    actual = kernels.rope(query.to(device), key.to(device), cos.to(device), sin.to(device))
    exact = plain(*(tensor.double() for tensor in (query, key, cos, sin)))
    for one, other in zip(actual, exact, strict=True):
        assert_as_good_as(one, other.to(dtype), other, ulps=1)


def test_views_of_a_fused_projection(device):
    for layout in (lambda x: x, lambda x: x.unflatten(0, (3, 3)).transpose(0, 1)):
        fused = layout(torch.randn(9, 5 * 32).unflatten(1, (5, 32)))
        _, _, cos, sin = tensors((*fused.shape[:-2], 3, 32), 1, 16)
        assert_right((fused[..., :3, :], fused[..., 3:4, :], cos, sin), device)
        there = fused.to(device)
        expected = kernels.rope(there[..., :3, :], there[..., 3:4, :], cos.to(device), sin.to(device))
        kernels.rope_inplace(there[..., :3, :], there[..., 3:4, :], cos.to(device), sin.to(device))
        assert torch.equal(there[..., :3, :], expected.query) and torch.equal(
            there[..., 3:4, :], expected.key
        )
        assert torch.equal(there[..., 4, :].cpu(), fused[..., 4, :]), "the values beside them stay"


def test_other_strides(device):
    query, key, cos, sin = tensors((6, 3, 32), 2, 32)
    expanded = query[:1].expand(6, 3, 32), key[:, :1].expand(6, 2, 32)
    assert_right((*expanded, cos[:1].expand(6, 32), sin[:1].expand(6, 32)), device)
    turned = [tensor.mT.contiguous().mT for tensor in (query, key, cos, sin)]
    assert_right(turned, device)
    heads_first = [tensor.transpose(0, 1).contiguous().transpose(0, 1) for tensor in (query, key)]
    assert_right((*heads_first, cos, sin), device)
    there = [tensor.to(device) for tensor in turned]
    expected = kernels.rope(*there)
    kernels.rope_inplace(*there)
    assert torch.equal(there[0], expected.query) and torch.equal(there[1], expected.key)


def test_in_place_counts_as_a_change_for_autograd(device):
    query, key, cos, sin = (tensor.to(device) for tensor in tensors((6, 3, 32), 2, 32))
    factor = torch.ones_like(query, requires_grad=True)
    product, version = query * factor, key._version
    kernels.rope_inplace(query, key, cos, sin.requires_grad_())
    kernels.rope_inplace(query, key, cos, sin.detach())
    assert key._version >= version + 2
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
    with torch.inference_mode():
        kernels.rope_inplace(query.clone(), key.clone(), cos, sin)


@pytest.mark.parametrize("shape", [(0, 3, 4), (3, 0, 4), (2, 0, 3, 4)], ids=str)
def test_empty(device, shape):
    given_tensors = tensors(shape, 1, 4)
    assert_right(given_tensors, device)
    query, key = kernels.rope(*(tensor.to(device) for tensor in given_tensors))
    assert query.shape == shape and key.shape == given_tensors[1].shape


@settings(max_examples=30, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 40)),
    key_heads=st.integers(1, 5),
    share=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_property_as_good_as_plain(shape, key_heads, share, seed):
    assert_right(tensors(shape, key_heads, int(share * shape[-1]) // 2 * 2, seed=seed), "cpu")


def test_gradcheck_with_halves_that_differ(device):
    query, key, _, _ = (t.to(device) for t in tensors((3, 2, 7), 1, 4, torch.float64))
    cos, sin = torch.randn(2, 3, 4, dtype=torch.float64, device=device)
    assert torch.autograd.gradcheck(
        lambda query, key: kernels.rope(query, key, cos, sin), (query.requires_grad_(), key.requires_grad_())
    )
    assert torch.autograd.gradgradcheck(lambda query: kernels.rope(query, key, cos, sin)[0], (query,))


def test_memory(device):
    query, key, cos, sin = (tensor.to(device) for tensor in tensors((64, 4, 64), 2, 64))
    assert allocations(lambda: kernels.rope(query.requires_grad_(), key, cos, sin)).kept == 4 * 64 * 6 * 64
    assert allocations(lambda: kernels.rope_inplace(query.detach(), key, cos, sin)).kept == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_meta_tensors(dtype):
    results = with_gradients(kernels.rope, *tensors((3, 4, 8), 2, 6, dtype), "meta")
    assert [tuple(tensor.shape) for tensor in results] == [(3, 4, 8), (3, 2, 8)] * 2
    assert {tensor.dtype for tensor in results} == {dtype}


def test_opcheck(device):
    query, key, cos, sin = (tensor.to(device) for tensor in tensors((5, 3, 8), 2, 6))
    torch.library.opcheck(torch.ops.fastrlhf.rope_inplace.default, (query.clone(), key.clone(), cos, sin))
    for transposed in (False, True):
        leaves = query.mT.contiguous().mT.requires_grad_(), key.clone().requires_grad_()
        torch.library.opcheck(torch.ops.fastrlhf.rope.default, (*leaves, cos, sin, transposed))


def test_compiles_whole(device):
    def block(query, key, cos, sin):
        query, key = kernels.rope(2 * query, key, cos, sin)
        return query.tanh(), key

    def changing(query, key, cos, sin):
        query = 2 * query
        kernels.rope_inplace(query, key, cos, sin)
        return query.tanh()

    given_tensors = tensors((4, 3, 8), 1, 8)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(
        with_gradients(compiled, *given_tensors, device), with_gradients(block, *given_tensors, device)
    )
    compiled = torch.compile(changing, fullgraph=True, backend="aot_eager")
    one, other = ([tensor.to(device).clone() for tensor in given_tensors] for _ in range(2))
    with torch.no_grad():
        torch.testing.assert_close(compiled(*one), changing(*other))
    torch.testing.assert_close(one, other)


def arguments(**changes):
    names = ("query", "key", "cos", "sin")
    return dict(zip(names, tensors((2, 3, 8), 2, 4), strict=True)) | changes


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"query": torch.zeros(8)}, ValueError, r"query has shape \[8\], expected \[\.\.\., H, D\]"),
        ({"query": torch.zeros(2, 3, 8).int()}, TypeError, r"query has dtype torch\.int32"),
        ({"key": torch.zeros(2, 3, 7)}, ValueError, r"key has shape \[2, 3, 7\], expected .* = \[2, 3, 8\]"),
        (
            {"key": torch.zeros(3, 8)},
            ValueError,
            r"key has shape \[3, 8\], expected \[\.\.\., Hk, D\] = .*Hk",
        ),
        ({"key": torch.zeros(2, 3, 8).half()}, TypeError, r"key has dtype torch\.float16"),
        (
            {"cos": torch.zeros(3, 4)},
            ValueError,
            r"cos has shape \[3, 4\], expected \[\.\.\., R\] = \[2, 4\]",
        ),
        (
            {"sin": torch.zeros(2, 6)},
            ValueError,
            r"sin has shape \[2, 6\], expected \[\.\.\., R\] = \[2, 4\]",
        ),
        ({"sin": torch.zeros(2, 4).half()}, TypeError, r"sin has dtype torch\.float16"),
        (
            {"cos": torch.zeros(2, 10), "sin": torch.zeros(2, 10)},
            ValueError,
            r"R = 10, .* at most the head's 8 elements",
        ),
        ({"cos": torch.zeros(2, 3), "sin": torch.zeros(2, 3)}, ValueError, r"R = 3, expected an even number"),
        ({"sin": torch.zeros(2, 4, device="meta")}, ValueError, r"query on cpu.*sin on meta"),
    ],
)
def test_errors_name_the_argument_its_value_and_what_was_expected(changes, error, message):
    for function in (kernels.rope, kernels.rope_inplace):
        with pytest.raises(error, match=message):
            function(**arguments(**changes))


def test_in_place_refuses_what_needs_a_gradient_and_what_is_expanded():
    with pytest.raises(
        RuntimeError, match="key requires a gradient, which rope_inplace has none for: use rope"
    ):
        kernels.rope_inplace(**arguments(key=torch.zeros(2, 2, 8, requires_grad=True)))
    with pytest.raises(ValueError, match="query is expanded"):
        kernels.rope_inplace(**arguments(query=torch.zeros(1, 3, 8).expand(2, 3, 8)))
