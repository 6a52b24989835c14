"""Attention over a paged cache, one row at a time, its keys and values gathered."""

from __future__ import annotations

import torch


def decode_attention(query, key_cache, value_cache, block_table, lengths, scale, window, softcap):
    """See `fastrlhf.kernels.decode_attention`. Computes in float32 at least, and never makes the host wait."""
    dtype = torch.promote_types(query.dtype, torch.float32)
    blocks, block_size, key_heads, _ = key_cache.shape
    capacity = block_table.shape[1] * block_size
    if blocks == 0 or capacity == 0:  # nothing to gather: rows are empty, or out of range
        fill = torch.where(lengths == 0, 0.0, torch.nan).to(query.dtype)
        return fill[:, None, None].expand(query.shape).contiguous()
    group = query.shape[1] // key_heads
    positions = torch.arange(capacity, device=query.device)
    output = torch.empty(query.shape, dtype=query.dtype, device=query.device)
    for row in range(query.shape[0]):
        seen = positions < lengths[row]
        if window is not None:
            seen &= positions >= lengths[row] - window
        table = block_table[row]
        missing = ((table < 0) | (table >= blocks)).repeat_interleave(block_size)
        wrong = (seen & missing).any() | (lengths[row] < 0) | (lengths[row] > capacity)
        held = table.clamp(0, blocks - 1)
        keys, values = (
            torch.where(seen[:, None, None], cache[held].flatten(0, 1).to(dtype), 0.0)
            for cache in (key_cache, value_cache)
        )
        heads = query[row].to(dtype).unflatten(0, (key_heads, group))
        scores = scale * torch.einsum("hgd,jhd->hgj", heads, keys)
        if softcap is not None:
            scores = softcap * torch.tanh(scores / softcap)
        weights = scores.masked_fill(~seen, -torch.inf).softmax(dim=-1)
        attended = torch.einsum("hgj,jhd->hgd", weights, values).flatten(0, 1)
        attended = torch.where(lengths[row] == 0, 0.0, torch.where(wrong, torch.nan, attended))
        output[row] = attended
    return output
