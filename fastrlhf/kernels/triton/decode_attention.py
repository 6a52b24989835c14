"""Attention of one new token a row over a paged cache: a program has a part of a row, and the query heads of one
key-value head; a second kernel merges the parts of rows that are split."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.decode_splits import decode_splits
from fastrlhf.kernels.triton.attention_tile import (
    padded_width,
    score_factors,
    serves,  # noqa: F401 - read by dispatch
    size_class,
    tile_scores,
)

CONFIGS = [
    {"BLOCK_N": 64, "num_warps": 4, "num_stages": 2},
    {"BLOCK_N": 32, "num_warps": 4, "num_stages": 2},
    {"BLOCK_N": 16, "num_warps": 4, "num_stages": 2},
]


def choose_config(width: int, dtype: torch.dtype) -> dict:
    """The largest tiles of those tried that spill nothing, or little."""
    return CONFIGS[(0, 0, 1, 1, 2, 2)[size_class(width, dtype)]]


def decode_attention(query, key_cache, value_cache, block_table, lengths, scale, window, softcap):
    """See `fastrlhf.kernels.decode_attention`. No atomics, so the same input gives the same bits."""
    query, block_table, lengths = query.contiguous(), block_table.contiguous(), lengths.contiguous()
    rows, heads, width = query.shape
    blocks, block_size, key_heads, _ = key_cache.shape
    columns = padded_width(width)
    splits = decode_splits(rows * key_heads, block_table.shape[1] * block_size, window)
    output = query.new_empty(query.shape)
    sums_of_parts = outputs_of_parts = output  # not looked at where nothing is split
    if splits > 1:
        sums_of_parts = query.new_empty((rows, heads, splits, 2), dtype=torch.float32)
        outputs_of_parts = query.new_empty((rows, heads, splits, width), dtype=torch.float32)
    launch_triton(
        decode_attention_kernel,
        (rows * splits, key_heads),
        query.device,
        *(query, key_cache, value_cache, block_table, lengths, output, sums_of_parts, outputs_of_parts),
        *(*key_cache.stride()[:3], *value_cache.stride()[:3]),
        *(blocks, block_table.shape[1], splits, *score_factors(scale, softcap), window or 0),
        GROUP=heads // key_heads,
        ROWS=max(16, triton.next_power_of_2(heads // key_heads)),
        WIDTH=width,
        COLUMNS=columns,
        BLOCK_SIZE=block_size,
        SPLIT=splits > 1,
        HAS_WINDOW=window is not None,
        HAS_SOFTCAP=softcap is not None,
        **choose_config(width, query.dtype),
    )
    if splits > 1:
        launch_triton(
            decode_attention_merge_kernel,
            (rows * heads,),
            query.device,
            *(sums_of_parts, outputs_of_parts, output),
            WIDTH=width,
            COLUMNS=columns,
            SPLITS=splits,
            num_warps=1 if splits * columns <= 2048 else 4,
        )
    return output


@triton.jit(do_not_specialize=["blocks", "max_blocks", "splits", "window"])
def decode_attention_kernel(
    query,
    key_cache,
    value_cache,
    block_table,
    lengths,
    output,
    sums_of_parts,
    outputs_of_parts,
    key_block_stride,
    key_slot_stride,
    key_head_stride,
    value_block_stride,
    value_slot_stride,
    value_head_stride,
    blocks,
    max_blocks,
    splits,
    factor,
    bound,
    window,
    GROUP: tl.constexpr,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SOFTCAP: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (rows times splits, key-value heads). sums_of_parts: `[rows, heads, splits, 2]`, the maximum of a part's
    scores and the sum of its weights; outputs_of_parts: `[rows, heads, splits, WIDTH]`, not divided by the sum."""
    program, key_head = tl.program_id(0), tl.program_id(1).to(tl.int64)
    row, split = (program // splits).to(tl.int64), program % splits
    heads = tl.num_programs(1) * GROUP
    members, columns = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    head = key_head * GROUP + members
    inside = (members < GROUP)[:, None] & (columns < WIDTH)[None, :]
    at = (row * heads + head)[:, None] * WIDTH + columns[None, :]
    queries = tl.load(query + at, mask=inside, other=0.0)

    length = tl.load(lengths + row)
    wrong = (length < 0) | (length > max_blocks * BLOCK_SIZE)
    length = tl.where(wrong, 0, length)
    low = 0
    if HAS_WINDOW:
        low = tl.maximum(0, length - window)
    positions = tl.cdiv(tl.cdiv(length - low, splits), BLOCK_N) * BLOCK_N
    begin = low + split * positions
    end = tl.minimum(begin + positions, length)

    key_cache += key_head * key_head_stride
    value_cache += key_head * value_head_stride
    maxima = tl.full((ROWS,), float("-inf"), tl.float32)
    sums = tl.zeros((ROWS,), tl.float32)
    outputs = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(begin, end, BLOCK_N):
        position = first + tl.arange(0, BLOCK_N)
        there = position < end
        block = tl.load(block_table + row * max_blocks + position // BLOCK_SIZE, mask=there, other=0)
        # an entry that is no block must not be read at
        missing = there & ((block < 0) | (block >= blocks))
        wrong = wrong | (tl.max(missing.to(tl.int32), axis=0) > 0)
        there = there & ~missing
        block, slot = block.to(tl.int64), (position % BLOCK_SIZE).to(tl.int64)
        keys = tl.load(
            key_cache + (block * key_block_stride + slot * key_slot_stride)[None, :] + columns[:, None],
            mask=there[None, :] & (columns < WIDTH)[:, None],
            other=0.0,
        )
        scores, _ = tile_scores(queries, keys, factor, bound, HAS_SOFTCAP)
        scores = tl.where(there[None, :], scores, float("-inf"))
        larger = tl.maximum(maxima, tl.max(scores, axis=1))
        reference = tl.where(larger == float("-inf"), 0.0, larger)
        weights = tl.exp(scores - reference[:, None])
        factors = tl.exp(maxima - reference)
        sums = sums * factors + tl.sum(weights, axis=1)
        maxima = larger
        values = tl.load(
            value_cache + (block * value_block_stride + slot * value_slot_stride)[:, None] + columns[None, :],
            mask=there[:, None] & (columns < WIDTH)[None, :],
            other=0.0,
        )
        outputs = outputs * factors[:, None]
        outputs = tl.dot(weights.to(values.dtype), values, outputs, input_precision="ieee")

    sums = tl.where(wrong, float("nan"), sums)
    if SPLIT:
        part = ((row * heads + head) * splits) + split
        tl.store(sums_of_parts + 2 * part, maxima, mask=members < GROUP)
        tl.store(sums_of_parts + 2 * part + 1, sums, mask=members < GROUP)
        tl.store(outputs_of_parts + part[:, None] * WIDTH + columns[None, :], outputs, mask=inside)
    else:
        # a row that has seen nothing is zero
        outputs = outputs / tl.where(sums == 0.0, 1.0, sums)[:, None]
        tl.store(output + at, outputs.to(output.dtype.element_ty), mask=inside)


@triton.jit
def decode_attention_merge_kernel(
    sums_of_parts,
    outputs_of_parts,
    output,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Grid: rows times heads. See `decode_attention_kernel`."""
    row_and_head = tl.program_id(0).to(tl.int64)
    parts, columns = row_and_head * SPLITS + tl.arange(0, SPLITS), tl.arange(0, COLUMNS)
    maxima, sums = tl.load(sums_of_parts + 2 * parts), tl.load(sums_of_parts + 2 * parts + 1)
    largest = tl.max(maxima, axis=0)
    factors = tl.exp(maxima - tl.where(largest == float("-inf"), 0.0, largest))
    outputs = tl.load(
        outputs_of_parts + parts[:, None] * WIDTH + columns[None, :],
        mask=(columns < WIDTH)[None, :],
        other=0.0,
    )
    total = tl.sum(factors * sums, axis=0)
    merged = tl.sum(factors[:, None] * outputs, axis=0) / tl.where(total == 0.0, 1.0, total)
    tl.store(
        output + row_and_head * WIDTH + columns,
        merged.to(output.dtype.element_ty),
        mask=columns < WIDTH,
    )
