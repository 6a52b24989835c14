"""What a decoding step begins with: a program for each row and tile of its embedding."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.begin_step import hidden_dtype
from fastrlhf.kernels.rows import with_dense_rows

CONFIGS = [
    {"BLOCK": 256, "num_warps": 1},
    {"BLOCK": 1024, "num_warps": 4},
]


def choose_config(width: int) -> dict:
    """A row's embedding by few programs, of which each reads the row's state."""
    return CONFIGS[width > 1024]


def begin_step(embedding, tokens, lengths, block_table, block_size, scale, position_embedding, cos, sin):
    """See `fastrlhf.kernels.begin_step`."""
    rows, width = len(tokens), embedding.shape[1]
    hidden = embedding.new_empty(rows, width, dtype=hidden_dtype(embedding, position_embedding))
    slots, longer = tokens.new_empty(rows), lengths.new_empty(rows)
    rotated = 0 if cos is None else cos.shape[1]
    like = embedding if cos is None else cos
    angles = [like.new_empty(rows, rotated) for _ in range(2)]
    tables = [
        None if table is None else with_dense_rows(table)
        for table in (embedding, position_embedding, cos, sin)
    ]
    config = choose_config(width)
    launch_triton(
        begin_step_kernel,
        (rows, max(1, triton.cdiv(width, config["BLOCK"]))),
        embedding.device,
        tokens,
        lengths,
        block_table,
        *tables,
        hidden,
        slots,
        longer,
        *angles,
        float(torch.tensor(scale, dtype=embedding.dtype)),
        *(0 if table is None else table.shape[0] for table in tables[:3]),
        block_table.shape[1],
        *(tensor.stride(0) for tensor in (tokens, lengths, block_table)),
        block_table.stride(1),
        *(0 if table is None else table.stride(0) for table in tables),
        BLOCK_SIZE=block_size,
        WIDTH=width,
        ROTATED=rotated,
        ROTATED_BLOCK=triton.next_power_of_2(max(1, rotated)),
        **config,
    )
    return hidden, slots, longer, *angles


@triton.jit
def load_row(table, row, rows, stride, column, inside):
    """Elements of a table's row, float32; NaN where it has no such row."""
    has = (row >= 0) & (row < rows)
    row = tl.where(has, row, 0)
    numbers = tl.load(table + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    return tl.where(has, numbers, float("nan"))


@triton.jit(do_not_specialize=["scale", "vocabulary", "embedded_positions", "positions", "blocks"])
def begin_step_kernel(
    tokens,
    lengths,
    block_table,
    embedding,
    position_embedding,
    cos,
    sin,
    hidden,
    slots,
    longer,
    cos_out,
    sin_out,
    scale,
    vocabulary,
    embedded_positions,
    positions,
    blocks,
    tokens_stride,
    lengths_stride,
    block_table_row_stride,
    block_table_stride,
    embedding_stride,
    position_embedding_stride,
    cos_stride,
    sin_stride,
    BLOCK_SIZE: tl.constexpr,
    WIDTH: tl.constexpr,
    ROTATED: tl.constexpr,
    ROTATED_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: rows, and tiles of an embedding; a row's first program does the rest of it."""
    row, tile = tl.program_id(0).to(tl.int64), tl.program_id(1)
    token = tl.load(tokens + row * tokens_stride)
    position = tl.load(lengths + row * lengths_stride).to(tl.int64)

    column = tile * BLOCK + tl.arange(0, BLOCK)
    inside = column < WIDTH
    numbers = load_row(embedding, token, vocabulary, embedding_stride, column, inside) * scale
    if position_embedding is not None:
        numbers = numbers.to(embedding.dtype.element_ty).to(tl.float32)
        numbers += load_row(
            position_embedding, position, embedded_positions, position_embedding_stride, column, inside
        )
    tl.store(hidden + row * WIDTH + column, numbers.to(hidden.dtype.element_ty), mask=inside)

    if tile == 0:
        at = position // BLOCK_SIZE
        has = (position >= 0) & (at < blocks)
        entry = block_table + row * block_table_row_stride + at * block_table_stride
        block = tl.load(entry, mask=has, other=0).to(tl.int64)
        tl.store(slots + row, tl.where(has, block * BLOCK_SIZE + position % BLOCK_SIZE, -1))
        tl.store(longer + row, (position + 1).to(tl.int32))
        if ROTATED > 0:
            angle = tl.arange(0, ROTATED_BLOCK)
            rotated = angle < ROTATED
            of_cos = load_row(cos, position, positions, cos_stride, angle, rotated)
            of_sin = load_row(sin, position, positions, sin_stride, angle, rotated)
            to = row * ROTATED + angle
            tl.store(cos_out + to, of_cos.to(cos_out.dtype.element_ty), mask=rotated)
            tl.store(sin_out + to, of_sin.to(sin_out.dtype.element_ty), mask=rotated)
