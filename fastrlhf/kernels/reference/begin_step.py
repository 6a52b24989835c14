"""What a decoding step begins with, as the words read."""

from __future__ import annotations

import torch


def begin_step(embedding, tokens, lengths, block_table, block_size, scale, position_embedding, cos, sin):
    """See `fastrlhf.kernels.begin_step`."""
    positions = lengths.long()
    hidden = rows_of(embedding, tokens) * float(torch.tensor(scale, dtype=embedding.dtype))
    if position_embedding is not None:
        hidden = hidden + rows_of(position_embedding, positions)
    angles = [
        embedding.new_empty(len(tokens), 0) if table is None else rows_of(table, positions)
        for table in (cos, sin)
    ]
    return hidden, _slots(positions, block_table, block_size), lengths + 1, *angles


def _slots(positions, block_table, block_size):
    last = block_table.shape[1] - 1
    if last < 0:
        return torch.full_like(positions, -1)
    column = positions // block_size
    block = block_table.gather(1, column.clamp(0, last)[:, None])[:, 0].long()
    has = (positions >= 0) & (column <= last)
    return torch.where(has, block * block_size + positions % block_size, -1)


def rows_of(table, index):
    """The table's rows of an index; NaN where it has none."""
    has = (index >= 0) & (index < len(table))
    return torch.where(has[:, None], table[index.clamp(0, len(table) - 1)], torch.nan)
