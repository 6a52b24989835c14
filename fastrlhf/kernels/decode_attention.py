"""Attention of one new token a row over a paged cache: contract, registration and public function."""

from __future__ import annotations

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.attention import check_grouping, scale_and_checked_options
from fastrlhf.kernels.checks import FLOATS, check_dims, check_dtype, check_same_device, check_shape
from fastrlhf.kernels.registration import operation


def decode_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """Attention of each row's last position over the keys and values that a paged cache holds of the row.

    Position j of row i is slot `j % block_size` of block `block_table[i, j // block_size]`. The query is at position
    `lengths[i] - 1`, whose key and value the cache already holds; it sees the last `window` positions, or all. Scores,
    scale, soft-cap and the grouping of heads are those of `attention`; statistics are float32.

    Source: Kwon et al., "Efficient memory management for large language model serving with PagedAttention" (2023);
    the split over a long row and its merge: Dao et al., "Flash-Decoding for long-context inference" (2023).

    Args:
        query: `[B, H, D]`, float.
        key_cache, value_cache: `[blocks, block_size, Hk, D]`, the same dtype; Hk divides H; the last stride is one.
        block_table: `[B, max_blocks]`, int32; entries past a row's length are not looked at.
        lengths: `[B]`, int32, in [0, max_blocks block_size].
        scale, window, softcap: see `attention`.

    Returns:
        `[B, H, D]` in the dtype of `query`; zero for a row of length zero. Not differentiable.

    Raises:
        ValueError, TypeError: shapes, strides, dtypes, devices or numbers that do not fit.
        IndexError: a length, or an entry of the block table that is looked at, is out of range (on a CPU; a GPU is not
            made to wait for the check: there the row's output is NaN).

    Memory: the output, and for rows that are split `[B, H, splits, D + 2]` float32.
    """
    check_dims("query", query, 3, "[B, H, D]")
    check_dtype("query", query, FLOATS)
    rows, heads, width = query.shape
    for name, cache in (("key_cache", key_cache), ("value_cache", value_cache)):
        check_dims(name, cache, 4, "[blocks, block_size, Hk, D]")
        check_shape(name, cache, (*key_cache.shape[:3], width), "[blocks, block_size, Hk, D]")
        check_dtype(name, cache, (query.dtype,))
        if cache.stride(3) != 1 and cache.numel():
            raise ValueError(f"{name} has strides {cache.stride()}, expected a last stride of one")
    check_grouping(heads, key_cache.shape[2])
    check_dims("block_table", block_table, 2, "[B, max_blocks]")
    check_shape("block_table", block_table, (rows, block_table.shape[1]), "[B, max_blocks]")
    check_shape("lengths", lengths, (rows,), "[B]")
    for name, tensor in (("block_table", block_table), ("lengths", lengths)):
        check_dtype(name, tensor, (torch.int32,))
    check_same_device(
        query=query,
        key_cache=key_cache,
        value_cache=value_cache,
        block_table=block_table,
        lengths=lengths,
    )
    scale = scale_and_checked_options(width, scale, window, softcap)
    return _decode_attention(query, key_cache, value_cache, block_table, lengths, scale, window, softcap)


def _check_indices(block_table: torch.Tensor, lengths: torch.Tensor, blocks: int, block_size: int) -> None:
    capacity = block_table.shape[1] * block_size
    if not lengths.numel():
        return
    low, high = int(lengths.min()), int(lengths.max())
    if low < 0 or high > capacity:
        raise IndexError(
            f"lengths lie in [{low}, {high}], expected [0, {capacity}] (max_blocks times block_size)"
        )
    held = torch.arange(block_table.shape[1]) * block_size < lengths[:, None]
    if ((block_table < 0) | (block_table >= blocks)).logical_and(held).any():
        used = block_table[held]
        raise IndexError(
            f"block_table's entries lie in [{int(used.min())}, {int(used.max())}], expected [0, {blocks}) (the blocks "
            "of the cache)"
        )


@dispatch.costs("decode_attention")
def _cost(query, key_cache, value_cache, block_table, lengths, scale, window, softcap) -> Cost:
    """As if every row were as long as its blocks allow: how long they are is on the device."""
    positions = block_table.shape[0] * block_table.shape[1] * key_cache.shape[1]
    if window is not None:
        positions = min(positions, block_table.shape[0] * window)
    read = 2 * positions * key_cache.shape[2] * key_cache.shape[3] * key_cache.element_size()
    arithmetic = 4 * positions * query.shape[1] * query.shape[2]
    return Cost(nbytes(query, block_table, lengths) + read, nbytes(query), arithmetic)


@operation("decode_attention")
def _decode_attention(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    lengths: torch.Tensor,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> torch.Tensor:
    if lengths.device.type == "cpu":
        _check_indices(block_table, lengths, *key_cache.shape[:2])
    return dispatch.call(
        "decode_attention",
        query,
        key_cache,
        value_cache,
        block_table,
        lengths,
        scale,
        window,
        softcap,
    )


@_decode_attention.register_fake
def _(query, key_cache, value_cache, block_table, lengths, scale, window, softcap):
    return query.new_empty(query.shape)
