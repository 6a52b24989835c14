"""What a decoding step begins with, from the state of its rows: contract, registration and public function."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.checks import (
    FLOATS,
    check_at_least,
    check_dims,
    check_dtype,
    check_same_device,
    check_shape,
)
from fastrlhf.kernels.registration import operation


class BeginStep(NamedTuple):
    """What `begin_step` returns."""

    hidden: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    cos: torch.Tensor
    sin: torch.Tensor


@torch.no_grad()
def begin_step(
    embedding: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor,
    *,
    block_size: int,
    scale: float = 1.0,
    position_embedding: torch.Tensor | None = None,
    cos: torch.Tensor | None = None,
    sin: torch.Tensor | None = None,
) -> BeginStep:
    """The embeddings of the rows' last tokens, where the cache takes them, and the angles of their positions.

    A row of `lengths[b]` positions in the cache has its token at position `p = lengths[b]`: at `p % block_size` of the
    block `block_table[b, p // block_size]` (paged cache; Kwon et al., "Efficient memory management for large language
    model serving with PagedAttention", 2023, section 4.1).

    Args:
        embedding: `[V, D]`, float, V at least one.
        tokens: `[B]`, int64; lengths: `[B]`, int32; block_table: `[B, M]`, int32.
        scale: the embeddings are multiplied by it, rounded to their dtype.
        position_embedding: `[P, D]`, float, added to that, P at least one.
        cos, sin: `[P, R]`, float: the angles of all positions, or both None.

    Returns:
        hidden `[B, D]`, of the embeddings' wider dtype; slots `[B]`, int64: `block block_size + p % block_size`;
        lengths `[B]`, int32, one more than given; cos and sin `[B, R]` (R is 0 without them).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit; on a CPU a token or position that is not there
            (a GPU is not made to wait for the check: that row is NaN, and its slot -1 where the table has no block).

    Memory: the outputs.
    """
    check_dims("embedding", embedding, 2, "[V, D]")
    check_dtype("embedding", embedding, FLOATS)
    check_at_least("embedding.shape[0]", embedding.shape[0], 1)
    check_at_least("block_size", block_size, 1)
    check_dims("tokens", tokens, 1, "[B]")
    rows, width = len(tokens), embedding.shape[1]
    check_dtype("tokens", tokens, (torch.int64,))
    check_shape("lengths", lengths, (rows,), "[B]")
    check_dtype("lengths", lengths, (torch.int32,))
    check_dims("block_table", block_table, 2, "[B, M]")
    check_shape("block_table", block_table, (rows, block_table.shape[1]), "[B, M]")
    check_dtype("block_table", block_table, (torch.int32,))
    if position_embedding is not None:
        check_dims("position_embedding", position_embedding, 2, "[P, D]")
        check_shape("position_embedding", position_embedding, (len(position_embedding), width), "[P, D]")
        check_dtype("position_embedding", position_embedding, FLOATS)
        check_at_least("position_embedding.shape[0]", len(position_embedding), 1)
    if (cos is None) != (sin is None):
        raise ValueError("one of cos and sin is None, expected both or none")
    if cos is not None:
        check_dims("cos", cos, 2, "[P, R]")
        check_dtype("cos", cos, FLOATS)
        check_at_least("cos.shape[0]", len(cos), 1)
        check_shape("sin", sin, tuple(cos.shape), "[P, R]")
        check_dtype("sin", sin, (cos.dtype,))
    check_same_device(
        embedding=embedding,
        tokens=tokens,
        lengths=lengths,
        block_table=block_table,
        position_embedding=position_embedding,
        cos=cos,
        sin=sin,
    )
    tables = position_embedding, cos, sin
    return BeginStep(*_begin_step(embedding, tokens, lengths, block_table, block_size, scale, *tables))


def hidden_dtype(embedding: torch.Tensor, position_embedding: torch.Tensor | None) -> torch.dtype:
    """The wider of the embeddings' dtypes."""
    if position_embedding is None:
        return embedding.dtype
    return torch.promote_types(embedding.dtype, position_embedding.dtype)


@dispatch.costs("begin_step")
def _cost(embedding, tokens, lengths, block_table, block_size, scale, position_embedding, cos, sin) -> Cost:
    rows, width = len(tokens), embedding.shape[1]
    tables = [table for table in (embedding, position_embedding, cos, sin) if table is not None]
    of_tables = sum(rows * table.shape[1] * table.element_size() for table in tables)
    angles = 0 if cos is None else 2 * rows * cos.shape[1] * cos.element_size()
    hidden = rows * width * hidden_dtype(embedding, position_embedding).itemsize
    # of the table a row reads one block
    read = of_tables + nbytes(tokens, lengths) + 4 * rows
    return Cost(read, hidden + angles + (8 + 4) * rows, rows * width)


@operation("begin_step")
def _begin_step(
    embedding: torch.Tensor,
    tokens: torch.Tensor,
    lengths: torch.Tensor,
    block_table: torch.Tensor,
    block_size: int,
    scale: float,
    position_embedding: torch.Tensor | None,
    cos: torch.Tensor | None,
    sin: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    if embedding.device.type == "cpu":
        _check_range("tokens", tokens, len(embedding))
        tables = [len(table) for table in (position_embedding, cos) if table is not None]
        _check_range("lengths", lengths, min(block_table.shape[1] * block_size, *tables))
    state = tokens, lengths, block_table, block_size, scale
    return dispatch.call("begin_step", embedding, *state, position_embedding, cos, sin)


def _check_range(name: str, indices: torch.Tensor, end: int) -> None:
    if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < end:
        raise ValueError(
            f"{name} goes from {int(indices.min())} to {int(indices.max())}, expected numbers in [0, {end})"
        )


@_begin_step.register_fake
def _(embedding, tokens, lengths, block_table, block_size, scale, position_embedding, cos, sin):
    rows = len(tokens)
    like = embedding if cos is None else cos
    return (
        embedding.new_empty(rows, embedding.shape[1], dtype=hidden_dtype(embedding, position_embedding)),
        tokens.new_empty(rows),
        lengths.new_empty(rows),
        *(like.new_empty(rows, 0 if cos is None else cos.shape[1]) for _ in range(2)),
    )
