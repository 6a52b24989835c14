"""Gradients of attention with whole score matrices, one sequence at a time; the weights need no log-sum-exp here."""

from __future__ import annotations

import torch

from fastrlhf.kernels.reference.attention import masked_scores, probabilities, sequences, wide


def attention_backward(
    grad_output, query, key, value, output, lse, cu_seqlens, skip, max_seqlen, scale, window, softcap
):
    """See `fastrlhf.kernels.attention`. Computes in float32 at least, and never makes the host wait."""
    tokens, heads, _ = query.shape
    wide_query, wide_key, wide_value = wide(query, heads), wide(key, heads), wide(value, heads)
    wide_grad, wide_output = wide(grad_output, heads), wide(output, heads)
    grad_query, grad_key, grad_value = (torch.zeros_like(wide_query) for _ in range(3))
    for rows in sequences(cu_seqlens, skip, tokens, max_seqlen):
        q, k, v, grad = wide_query[rows], wide_key[rows], wide_value[rows], wide_grad[rows]
        scores = masked_scores(q, k, rows < tokens, scale, window, softcap)
        p = probabilities(scores)
        grad_value[rows] = torch.einsum("hij,ihd->jhd", p, grad)
        delta = (grad * wide_output[rows]).sum(dim=-1).T
        grad_scores = p * (torch.einsum("ihd,jhd->hij", grad, v) - delta[..., None])
        if softcap is not None:
            grad_scores *= 1 - (scores.masked_fill(p == 0, 0.0) / softcap).square()
        grad_query[rows] = scale * torch.einsum("hij,jhd->ihd", grad_scores, k)
        grad_key[rows] = scale * torch.einsum("hij,ihd->jhd", grad_scores, q)
    return tuple(
        _narrow(grad, like) for grad, like in ((grad_query, query), (grad_key, key), (grad_value, value))
    )


def _narrow(grad: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """`[T + 1, H, D]` as the shape and dtype of `like`, summed over the heads that read each of its own."""
    tokens, key_heads, _ = like.shape
    grouped = grad[:tokens].unflatten(1, (key_heads, -1))
    return grouped.sum(dim=2).to(like.dtype)
