"""The keys' and values' gradients of attention: a program has a block of keys, and goes over the queries that see them,
of all heads that share the keys."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.kernels.triton.attention_tile import is_seen, sequence_bounds, size_class, tile_scores

# Shared memory holds a block of keys and one of values and, a stage, one of queries and one of gradients.
CONFIGS = [
    {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 32, "BLOCK_N": 64, "num_warps": 8, "num_stages": 2},
    {"BLOCK_M": 16, "BLOCK_N": 32, "num_warps": 8, "num_stages": 1},
    {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1},
    {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 4, "num_stages": 1},
]
BLOCK = "BLOCK_N"


def choose_config(width: int, dtype: torch.dtype) -> dict:
    """The largest tiles of those tried that spill nothing, or little."""
    return CONFIGS[(0, 1, 2, 2, 3, 4)[size_class(width, dtype)]]


@triton.jit
def over_queries(
    grad_keys,
    grad_values,
    turned_keys,
    turned_values,
    query,
    grad_output,
    lse,
    delta,
    query_stride,
    grad_stride,
    heads,
    begin,
    end,
    keys,
    length,
    factor,
    bound,
    window,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    MASKED: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
):
    """Adds what one head's queries from `begin` to `end` contribute; all of them see all keys unless MASKED."""
    columns = tl.arange(0, COLUMNS)
    for first in range(begin, end, BLOCK_M):
        rows = first + tl.arange(0, BLOCK_M)
        there = rows.to(tl.int64)
        inside = (rows < length)[:, None] & (columns < WIDTH)[None, :]
        queries = tl.load(query + there[:, None] * query_stride + columns[None, :], mask=inside, other=0.0)
        grad_outputs = tl.load(
            grad_output + there[:, None] * grad_stride + columns[None, :], mask=inside, other=0.0
        )
        # a row past the end weighs nothing
        of_rows = tl.load(lse + there * heads, mask=rows < length, other=float("inf"))
        deltas = tl.load(delta + there * heads, mask=rows < length, other=0.0)
        scores, slope = tile_scores(queries, turned_keys, factor, bound, HAS_SOFTCAP)
        if MASKED:
            seen = is_seen(rows[:, None], keys[None, :], length, window, HAS_WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        weights = tl.exp(scores - of_rows[:, None])
        grad_values = tl.dot(
            tl.trans(weights.to(queries.dtype)), grad_outputs, grad_values, input_precision="ieee"
        )
        grad_weights = tl.dot(grad_outputs, turned_values, input_precision="ieee")
        grad_scores = weights * (grad_weights - deltas[:, None]) * slope
        grad_keys = tl.dot(
            tl.trans(grad_scores.to(queries.dtype)), queries, grad_keys, input_precision="ieee"
        )
    return grad_keys, grad_values


@triton.jit(do_not_specialize=["tokens", "blocks", "window"])
def attention_key_kernel(
    query,
    key,
    value,
    grad_output,
    lse,
    delta,
    grad_key,
    grad_value,
    cu_seqlens,
    skip,
    query_stride,
    query_head_stride,
    key_stride,
    key_head_stride,
    value_stride,
    value_head_stride,
    grad_stride,
    grad_head_stride,
    tokens,
    blocks,
    scale,
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
    """Grid: (blocks of the longest sequence times sequences, key-value heads)."""
    program, key_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    key_heads = tl.num_programs(1)
    start, length = sequence_bounds(cu_seqlens, skip, (program // blocks).to(tl.int64), tokens, HAS_SKIP)
    # the first blocks of a sequence have the most queries after them, and go first
    first = program % blocks * BLOCK_N
    if first >= length:
        return
    keys = first + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, COLUMNS)
    token = start + keys
    inside = (keys < length)[None, :] & (columns < WIDTH)[:, None]
    turned_keys = tl.load(
        key + token[None, :] * key_stride + key_head * key_head_stride + columns[:, None],
        mask=inside,
        other=0.0,
    )
    turned_values = tl.load(
        value + token[None, :] * value_stride + key_head * value_head_stride + columns[:, None],
        mask=inside,
        other=0.0,
    )

    # queries in three stretches: around the diagonal, all that see every key, and at the window's edge
    low, high = first // BLOCK_M * BLOCK_M, length
    whole = tl.minimum(tl.cdiv(first + BLOCK_N - 1, BLOCK_M) * BLOCK_M, high)
    edge = high
    if HAS_WINDOW:
        high = tl.minimum(length, first + BLOCK_N - 1 + window)
        edge = tl.minimum((first + window) // BLOCK_M * BLOCK_M, high)
    grad_keys = tl.zeros((BLOCK_N, COLUMNS), tl.float32)
    grad_values = tl.zeros((BLOCK_N, COLUMNS), tl.float32)
    heads = key_heads * GROUP
    for member in range(GROUP):
        head = key_head * GROUP + member
        queries = query + start * query_stride + head * query_head_stride
        grads = grad_output + start * grad_stride + head * grad_head_stride
        statistics = start * heads + head
        grad_keys, grad_values = over_queries(
            *(grad_keys, grad_values, turned_keys, turned_values, queries, grads),
            *(lse + statistics, delta + statistics, query_stride, grad_stride, heads),
            *(low, whole, keys, length, factor, bound, window),
            *(WIDTH, COLUMNS, BLOCK_M, True, HAS_WINDOW, HAS_SOFTCAP),
        )
        grad_keys, grad_values = over_queries(
            *(grad_keys, grad_values, turned_keys, turned_values, queries, grads),
            *(lse + statistics, delta + statistics, query_stride, grad_stride, heads),
            *(whole, edge, keys, length, factor, bound, window),
            *(WIDTH, COLUMNS, BLOCK_M, False, HAS_WINDOW, HAS_SOFTCAP),
        )
        if HAS_WINDOW:
            grad_keys, grad_values = over_queries(
                *(grad_keys, grad_values, turned_keys, turned_values, queries, grads),
                *(lse + statistics, delta + statistics, query_stride, grad_stride, heads),
                *(tl.maximum(whole, edge), high, keys, length, factor, bound, window),
                *(WIDTH, COLUMNS, BLOCK_M, True, HAS_WINDOW, HAS_SOFTCAP),
            )
    at = (token[:, None] * key_heads + key_head) * WIDTH + columns[None, :]
    inside = (keys < length)[:, None] & (columns < WIDTH)[None, :]
    tl.store(grad_key + at, (grad_keys * scale).to(grad_key.dtype.element_ty), mask=inside)
    tl.store(grad_value + at, grad_values.to(grad_value.dtype.element_ty), mask=inside)
