"""The queries' gradient of attention: a program has a block of one head's queries, and goes over the keys they see."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.kernels.triton.attention_tile import is_seen, sequence_bounds, size_class, tile_scores

# Shared memory holds a block of queries and of gradients and, a stage, one of keys and one of values.
CONFIGS = [
    {"BLOCK_M": 64, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 32, "BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    {"BLOCK_M": 32, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1},
    {"BLOCK_M": 16, "BLOCK_N": 16, "num_warps": 8, "num_stages": 1},
]
BLOCK = "BLOCK_M"


def choose_config(width: int, dtype: torch.dtype) -> dict:
    """The largest tiles of those tried that spill nothing, or little."""
    return CONFIGS[(0, 0, 1, 1, 2, 3)[size_class(width, dtype)]]


@triton.jit
def over_keys(
    grads,
    queries,
    grad_outputs,
    lse,
    delta,
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
    """Adds what the keys from `begin` to `end` contribute; all of them are seen by all rows unless MASKED."""
    columns = tl.arange(0, COLUMNS)
    for first in range(begin, end, BLOCK_N):
        keys = first + tl.arange(0, BLOCK_N)
        there = keys.to(tl.int64)
        inside = (keys < length)[None, :] & (columns < WIDTH)[:, None]
        turned_keys = tl.load(key + there[None, :] * key_stride + columns[:, None], mask=inside, other=0.0)
        turned_values = tl.load(
            value + there[None, :] * value_stride + columns[:, None], mask=inside, other=0.0
        )
        scores, slope = tile_scores(queries, turned_keys, factor, bound, HAS_SOFTCAP)
        if MASKED:
            seen = is_seen(rows[:, None], keys[None, :], length, window, HAS_WINDOW)
            scores = tl.where(seen, scores, float("-inf"))
        weights = tl.exp(scores - lse[:, None])
        grad_weights = tl.dot(grad_outputs, turned_values, input_precision="ieee")
        grad_scores = weights * (grad_weights - delta[:, None]) * slope
        grads = tl.dot(grad_scores.to(queries.dtype), tl.trans(turned_keys), grads, input_precision="ieee")
    return grads


@triton.jit(do_not_specialize=["tokens", "blocks", "window"])
def attention_query_kernel(
    query,
    key,
    value,
    grad_output,
    lse,
    delta,
    grad_query,
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
    grad_outputs = tl.load(
        grad_output + token[:, None] * grad_stride + head * grad_head_stride + columns[None, :],
        mask=inside,
        other=0.0,
    )
    # a row past the end weighs nothing
    of_rows = tl.load(lse + token * heads + head, mask=rows < length, other=float("inf"))
    deltas = tl.load(delta + token * heads + head, mask=rows < length, other=0.0)
    key += start * key_stride + head // GROUP * key_head_stride
    value += start * value_stride + head // GROUP * value_head_stride

    # keys in three stretches: at the window's edge, seen by every row, and around the diagonal
    high = tl.minimum(first + BLOCK_M, length)
    low, whole, diagonal = 0, 0, (first + 1) // BLOCK_N * BLOCK_N
    if HAS_WINDOW:
        low = tl.maximum(0, first - window + 1) // BLOCK_N * BLOCK_N
        whole = tl.cdiv(tl.maximum(0, first + BLOCK_M - window), BLOCK_N) * BLOCK_N
    grads = tl.zeros((BLOCK_M, COLUMNS), tl.float32)
    if HAS_WINDOW:
        grads = over_keys(
            *(grads, queries, grad_outputs, of_rows, deltas, key, value, key_stride, value_stride),
            *(low, tl.minimum(whole, high), rows, length, factor, bound, window),
            *(WIDTH, COLUMNS, BLOCK_N, True, HAS_WINDOW, HAS_SOFTCAP),
        )
    grads = over_keys(
        *(grads, queries, grad_outputs, of_rows, deltas, key, value, key_stride, value_stride),
        *(whole, diagonal, rows, length, factor, bound, window),
        *(WIDTH, COLUMNS, BLOCK_N, False, HAS_WINDOW, HAS_SOFTCAP),
    )
    grads = over_keys(
        *(grads, queries, grad_outputs, of_rows, deltas, key, value, key_stride, value_stride),
        *(tl.maximum(whole, diagonal), high, rows, length, factor, bound, window),
        *(WIDTH, COLUMNS, BLOCK_N, True, HAS_WINDOW, HAS_SOFTCAP),
    )
    tl.store(
        grad_query + (token[:, None] * heads + head) * WIDTH + columns[None, :],
        (grads * scale).to(grad_query.dtype.element_ty),
        mask=inside,
    )
