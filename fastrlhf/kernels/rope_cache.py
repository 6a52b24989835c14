"""A decoding step's queries and keys rotated, keys and values written into a cache: contract and public function."""

from __future__ import annotations

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.checks import FLOATS, check_dims, check_dtype, check_same_device, check_shape
from fastrlhf.kernels.rope import check_angles


@torch.no_grad()
def rope_cache(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    slots: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
) -> torch.Tensor:
    """The queries as `rope` rotates them; the rotated keys, and the values, go into their slots of the caches.

    Args:
        query: `[N, H, D]`, float; key, value: `[N, Hk, D]`, the same dtype.
        cos, sin: `[N, R]`, see `rope`; both None without rotary embedding, where keys are written as they are.
        slots: `[N]`, int64: where the caches take a token's key and value; a slot that they do not have takes nothing.
            No two tokens may have one slot, unless nobody reads it.
        key_cache, value_cache: `[S, Hk, D]`, the dtype of key, changed in place.

    Returns:
        `[N, H, D]`, contiguous.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Memory: the output.
    """
    check_dims("query", query, 3, "[N, H, D]")
    check_dtype("query", query, FLOATS)
    tokens, _, width = query.shape
    check_dims("key", key, 3, "[N, Hk, D]")
    heads = key.shape[1]
    check_shape("key", key, (tokens, heads, width), "[N, Hk, D]")
    check_shape("value", value, (tokens, heads, width), "[N, Hk, D]")
    check_dims("key_cache", key_cache, 3, "[S, Hk, D]")
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        check_shape(name, cache, (key_cache.shape[0], heads, width), "[S, Hk, D]")
    tensors = {"key": key, "value": value, "key_cache": key_cache, "value_cache": value_cache}
    for name, tensor in tensors.items():
        check_dtype(name, tensor, (query.dtype,))
    if (cos is None) != (sin is None):
        raise ValueError("one of cos and sin is None, expected both or none")
    if cos is not None:
        check_angles(query, cos, sin)
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        if cache.stride(2) != 1 and cache.numel():
            raise ValueError(f"{name} has strides {cache.stride()}, expected a head's elements side by side")
    check_shape("slots", slots, (tokens,), "[N]")
    check_dtype("slots", slots, (torch.int64,))
    check_same_device(query=query, **tensors, cos=cos, sin=sin, slots=slots)
    return _rope_cache(query, key, value, cos, sin, slots, key_cache, value_cache)


@dispatch.costs("rope_cache")
def _cost(query, key, value, cos, sin, slots, key_cache, value_cache) -> Cost:
    rotated = 0 if cos is None else 3 * cos.numel() * (query.shape[-2] + key.shape[-2])
    written = nbytes(query, key, value)
    return Cost(written + nbytes(cos, sin, slots), written, rotated)


@torch.library.custom_op("fastrlhf::rope_cache", mutates_args=("key_cache", "value_cache"))
def _rope_cache(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
    slots: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
) -> torch.Tensor:
    return dispatch.call("rope_cache", query, key, value, cos, sin, slots, key_cache, value_cache)


@_rope_cache.register_fake
def _(query, *_):
    return query.new_empty(query.shape)
