from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels.cases.rope_cache import tensors
from tests.support.precision import assert_as_good_as

OPERATION = "rope_cache"
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
# Query heads, key heads, their width, elements rotated.
SHAPES = [(1, 1, 2, 2), (3, 1, 64, 64), (4, 2, 20, 6), (9, 3, 48, 48), (3, 3, 10, 0)]


def assert_right(arguments, device):
    """The numbers are those of `rope` in float64, and what no slot names stays."""
    query, key, value, cos, sin, slots, *caches = arguments
    there = [None if tensor is None else tensor.to(device) for tensor in arguments]
    out = kernels.rope_cache(*there)
    exact, plain = query.double(), query
    exact_key, plain_key = key.double(), key
    if cos is not None:
        with kernels.using("reference"):
            exact, exact_key = kernels.rope(exact, exact_key, cos.double(), sin.double())
            plain, plain_key = kernels.rope(query, key, cos, sin)
    assert out.is_contiguous()
    assert_as_good_as(out, plain, exact, name="query")
    assert_as_good_as(there[6][slots.to(device)], plain_key, exact_key, name="key")
    assert torch.equal(there[7].cpu()[slots], value)
    rest = torch.ones(len(caches[0]), dtype=torch.bool)
    rest[slots] = False
    for cache, before in zip(there[6:], caches, strict=True):
        assert torch.equal(cache.cpu()[rest], before[rest]), "slots of others"


def in_larger_caches(arguments):
    *rest, slots, keys, values = arguments
    return (*rest, slots * 2 + 1, *(torch.cat([cache, cache, cache]) for cache in (keys, values)))


def test_a_quarter_turn_by_hand(device):
    query, cos, sin = (
        torch.tensor(rows, device=device) for rows in ([[[1.0, 2.0]]], [[0.0] * 2], [[1.0] * 2])
    )
    caches = [torch.zeros(3, 1, 2, device=device) for _ in range(2)]
    out = kernels.rope_cache(query, 2 * query, 3 * query, cos, sin, torch.tensor([1], device=device), *caches)
    assert out.tolist() == [[[-2.0, 1.0]]]
    assert caches[0].tolist() == [[[0.0, 0.0]], [[-4.0, 2.0]], [[0.0, 0.0]]]
    assert caches[1].tolist() == [[[0.0, 0.0]], [[3.0, 6.0]], [[0.0, 0.0]]]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_as_good_as_plain(device, dtype, shape):
    assert_right(in_larger_caches(tensors(dtype, *shape)), device)


def test_every_config(triton_config):
    assert_right(in_larger_caches(tensors(torch.float32, 4, 2, 20, 6)), triton_config)


def test_without_rotary_embedding(device):
    query, key, value, _, _, *rest = in_larger_caches(tensors(torch.float32, 3, 2, 20, 6))
    assert_right((query, key, value, None, None, *rest), device)


def test_other_strides(device):
    *given, slots, keys, values = in_larger_caches(tensors(torch.float32, 4, 2, 32, 8))
    query, key, value, cos, sin = (tensor.mT.contiguous().mT for tensor in given)
    slots = slots.repeat_interleave(2)[::2]
    # of one layer of a cache whose heads come first, as a view
    caches = [
        torch.stack([cache, cache]).transpose(1, 2).contiguous().transpose(1, 2)[1]
        for cache in (keys, values)
    ]
    assert_right((query, key, value, cos, sin, slots, *caches), device)


def test_a_slot_that_is_not_there_takes_nothing(device):
    *given, slots, keys, values = tensors(torch.float32, 3, 2, 16, 16)
    slots = torch.tensor([3, -1, 5, 2**40, 0])
    there = [tensor.to(device) for tensor in (*given, slots, keys.clone(), values.clone())]
    out = kernels.rope_cache(*there)
    assert torch.equal(out, kernels.rope(*there[:2], *there[3:5]).query)
    for cache, before in zip(there[6:], (keys, values), strict=True):
        assert torch.equal(cache[[1, 2, 4]].cpu(), before[[1, 2, 4]])
        assert not torch.equal(cache[[0, 3]].cpu(), before[[0, 3]])


def test_no_slot_at_all(device):
    *given, keys, values = tensors(torch.float32, 3, 2, 16, 16)
    there = [tensor.to(device) for tensor in (*given, keys[:0], values[:0])]
    assert kernels.rope_cache(*there).shape == (5, 3, 16)


@pytest.mark.parametrize(
    ("at", "change", "problem"),
    [
        (0, lambda x: x[0], r"query has shape \[3, 16\], expected \[N, H, D\]"),
        (1, lambda x: x[:2], r"key has shape"),
        (2, lambda x: x[:, :1], r"value has shape"),
        (2, lambda x: x.double(), r"value is torch.float64|value has dtype"),
        (3, lambda x: None, r"one of cos and sin is None"),
        (4, lambda x: x[:, :15], r"sin has shape"),
        (5, lambda x: x.int(), r"slots"),
        (6, lambda x: x[:, :, :3], r"key_cache has shape"),
        (7, lambda x: x[:2], r"value_cache has shape"),
        (7, lambda x: x.mT.contiguous().mT, r"value_cache has strides .* side by side"),
    ],
)
def test_errors(at, change, problem):
    arguments = list(tensors(torch.float32, 3, 2, 16, 16))
    arguments[at] = change(arguments[at])
    with pytest.raises((ValueError, TypeError), match=problem):
        kernels.rope_cache(*arguments)


def test_opcheck():
    torch.library.opcheck(torch.ops.fastrlhf.rope_cache.default, tensors(torch.float32, 3, 2, 16, 16))
