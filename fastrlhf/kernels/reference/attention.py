"""Attention with whole score matrices, one sequence at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch


def attention(query, key, value, cu_seqlens, skip, max_seqlen, scale, window, softcap):
    """See `fastrlhf.kernels.attention`. Computes in float32 at least, and never makes the host wait."""
    tokens, heads, width = query.shape
    wide_query, wide_key, wide_value = wide(query, heads), wide(key, heads), wide(value, heads)
    # one row more than there are tokens: whatever is not a position that counts goes there
    output = wide_query.new_zeros(tokens + 1, heads, width)
    lse = wide_query.new_full((tokens + 1, heads), -torch.inf)
    for rows in sequences(cu_seqlens, skip, tokens, max_seqlen):
        scores = masked_scores(wide_query[rows], wide_key[rows], rows < tokens, scale, window, softcap)
        output[rows] = torch.einsum("hij,jhd->ihd", probabilities(scores), wide_value[rows])
        lse[rows] = scores.logsumexp(dim=-1).T
    return output[:tokens].to(query.dtype), lse[:tokens]


def sequences(
    cu_seqlens: torch.Tensor, skip: torch.Tensor | None, tokens: int, max_seqlen: int
) -> Iterator[torch.Tensor]:
    """For each sequence its positions' rows, `[max_seqlen]`; padding and what is past the end has row `tokens`."""
    positions = torch.arange(max_seqlen, device=cu_seqlens.device)
    bounds = cu_seqlens.clamp(0, tokens)
    for i in range(bounds.shape[0] - 1):
        rows = positions + bounds[i]
        counts = rows < bounds[i + 1]
        if skip is not None:
            counts &= positions >= skip[i]
        yield torch.where(counts, rows, tokens)


def wide(tensor: torch.Tensor, heads: int) -> torch.Tensor:
    """`[T, Hk, D]` as `[T + 1, heads, D]`, float32 at least: each head as often as it is read, and a row of zeros."""
    tensor = tensor.to(torch.promote_types(tensor.dtype, torch.float32))
    tensor = tensor.repeat_interleave(heads // tensor.shape[1], dim=1)
    return torch.nn.functional.pad(tensor, (0, 0, 0, 0, 0, 1))


def masked_scores(query, key, counts, scale, window, softcap):
    """`[H, L, L]`: -inf where a query does not see a key, as where either does not count."""
    scores = scale * torch.einsum("ihd,jhd->hij", query, key)
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    positions = torch.arange(query.shape[0], device=query.device)
    distance = positions[:, None] - positions
    seen = (distance >= 0) & counts & counts[:, None]
    if window is not None:
        seen &= distance < window
    return scores.masked_fill(~seen, -torch.inf)


def probabilities(scores):
    """The softmax of each row, zero throughout one that sees nothing."""
    nothing = (scores == -torch.inf).all(dim=-1, keepdim=True)
    return scores.softmax(dim=-1).masked_fill(nothing, 0.0)
