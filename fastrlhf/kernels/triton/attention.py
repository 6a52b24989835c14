"""Attention over packed sequences: a program has a block of one head's queries, and goes over the keys they see."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.rows import with_dense_rows
from fastrlhf.kernels.triton.attention_tile import (
    is_seen,
    padded_width,
    score_factors,
    sequence_bounds,
    serves,  # noqa: F401 - read by dispatch
    size_class,
    tile_scores,
)

# Shared memory holds a block of queries and, a stage, one of keys and one of values: 99 KB on the smallest cards.
CONFIGS = [
    {"BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1},
]


def choose_config(width: int, dtype: torch.dtype) -> dict:
    """The largest tiles of those tried that spill nothing, or little."""
    return CONFIGS[size_class(width, dtype)]


def attention(query, key, value, cu_seqlens, skip, max_seqlen, scale, window, softcap):
    """See `fastrlhf.kernels.attention`. No atomics, so the same input gives the same bits."""
    query, key, value = (with_dense_rows(tensor) for tensor in (query, key, value))
    cu_seqlens, skip = cu_seqlens.contiguous(), skip if skip is None else skip.contiguous()
    tokens, heads, width = query.shape
    if skip is None:
        output = query.new_empty(query.shape)
        lse = query.new_empty(query.shape[:2], dtype=torch.float32)
    else:  # the kernel leaves padding as it is
        output = query.new_zeros(query.shape)
        lse = query.new_full(query.shape[:2], -torch.inf, dtype=torch.float32)
    config = choose_config(width, query.dtype)
    blocks = triton.cdiv(max_seqlen, config["BLOCK_M"])
    windowed = window is not None and window < max_seqlen
    launch_triton(
        attention_kernel,
        (blocks * (cu_seqlens.shape[0] - 1), heads),
        query.device,
        *(query, key, value, output, lse, cu_seqlens, cu_seqlens if skip is None else skip),
        *(*query.stride()[:2], *key.stride()[:2], *value.stride()[:2]),
        tokens,
        blocks,
        *score_factors(scale, softcap),
        window if windowed else 0,
        GROUP=heads // key.shape[1],
        WIDTH=width,
        COLUMNS=padded_width(width),
        HAS_SKIP=skip is not None,
        HAS_WINDOW=windowed,
        HAS_SOFTCAP=softcap is not None,
        **config,
    )
    return output, lse


@triton.jit
def over_keys(
    maxima,
    sums,
    outputs,
    queries,
    key,
    value,
    key_stride,
    value_stride,
    begin,
    end,
    rows,
    length,
    factor,
    bound,
    window,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """The online softmax over the keys from `begin` to `end`; all of them are seen by all rows unless MASKED."""
    columns = tl.arange(0, COLUMNS)
    for first in range(begin, end, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        there, inside = keys.to(tl.int64), keys < length
        right = tl.load(
            key + there[None, :] * key_stride + columns[:, None],
            mask=inside[None, :] & (columns < WIDTH)[:, None],
            other=0.0,
        )
        scores, _ = tile_scores(queries, right, factor, bound, HAS_SOFTCAP)
        if MASKED:
            seen = is_seen(rows[:, None], keys[None, :], length, window, HAS_WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        larger = tl.maximum(maxima, tl.max(scores, axis=1))
        # a row that has seen nothing yet may be measured against any finite number
        reference = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp(scores - reference[:, None])
        factors = tl.exp(maxima - reference)
        sums = sums * factors + tl.sum(weights, axis=1)
        maxima = larger
        values = tl.load(
            value + there[:, None] * value_stride + columns[None, :],
            mask=inside[:, None] & (columns < WIDTH)[None, :],
            other=0.0,
        )
        outputs = outputs * factors[:, None]
        outputs = tl.dot(weights.to(values.dtype), values, outputs, input_precision="ieee")
    return maxima, sums, outputs


@triton.jit(do_not_specialize=["tokens", "blocks", "window"])
def attention_kernel(
    query,
    key,
    value,
    output,
    lse,
    cu_seqlens,
    skip,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    tokens,
    blocks,
    factor,
    bound,
    window,
    GROUP: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    HAS_SKIP: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (blocks of the longest sequence times sequences, query heads)."""
    program, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    heads = tl.num_programs(1)
    start, length = sequence_bounds(cu_seqlens, skip, (program // blocks).to(tl.int64), tokens, HAS_SKIP)
    # the last blocks of a sequence have the most keys before them, and go first
    first = (blocks - 1 - program % blocks) * BLOCK_M
    if first >= length:
        return
    rows = first + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < length)[:, None] & (columns < WIDTH)[None, :]
    token = start + rows
    queries = tl.load(
        query + token[:, None] * query_stride + head * query_head_stride + columns[None, :],
        mask=inside,
        other=0.0,
    )
    key += start * key_stride + head // GROUP * key_head_stride
    value += start * value_stride + head // GROUP * value_head_stride

    # keys in three stretches: at the window's edge, seen by every row, and around the diagonal
    high = tl.minimum(first + BLOCK_M, length)
    low, whole, diagonal = 0, 0, (first + 1) // BLOCK_N * BLOCK_N
    if HAS_WINDOW:
        low = tl.maximum(0, first - window + 1) // BLOCK_N * BLOCK_N
        whole = tl.cdiv(tl.maximum(0, first + BLOCK_M - window), BLOCK_N) * BLOCK_N
    maxima = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    sums = tl.zeros((BLOCK_M,), tl.float32)
    outputs = tl.zeros((BLOCK_M, COLUMNS), tl.float32)
    if HAS_WINDOW:
        maxima, sums, outputs = over_keys(
            *(maxima, sums, outputs, queries, key, value, key_stride, value_stride),
            *(low, tl.minimum(whole, high), rows, length, factor, bound, window),
            *(WIDTH, COLUMNS, BLOCK_N, True, HAS_WINDOW, HAS_SOFTCAP),
        )
    maxima, sums, outputs = over_keys(
        *(maxima, sums, outputs, queries, key, value, key_stride, value_stride),
        *(whole, diagonal, rows, length, factor, bound, window),
        *(WIDTH, COLUMNS, BLOCK_N, False, HAS_WINDOW, HAS_SOFTCAP),
    )
    maxima, sums, outputs = over_keys(
        *(maxima, sums, outputs, queries, key, value, key_stride, value_stride),
        *(tl.maximum(whole, diagonal), high, rows, length, factor, bound, window),
        *(WIDTH, COLUMNS, BLOCK_N, True, HAS_WINDOW, HAS_SOFTCAP),
    )

    sums = tl.where(rows < length, sums, 1.0)  # past the end a row may have seen nothing
    outputs = outputs / sums[:, None]
    tl.store(
        output + (token[:, None] * heads + head) * WIDTH + columns[None, :],
        outputs.to(output.dtype.element_ty),
        mask=inside,
    )
    tl.store(lse + token * heads + head, maxima + tl.log(sums), mask=rows < length)
