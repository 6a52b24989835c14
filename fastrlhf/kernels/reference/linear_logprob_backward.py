"""Gradients of `linear_logprob`, one tile of rows at a time, the logits computed again."""

from __future__ import annotations

import torch

from fastrlhf.kernels.reference.linear_logprob import log_softmax, logits, tiles, xlogx


def linear_logprob_backward(
    grad_logprobs, grad_entropy, hidden_states, weight, targets, bias, temperature, softcap, needs_weight
):
    """See `fastrlhf.kernels.linear_logprob`. With `H` the entropy:

    `d logprob / dz = (onehot - p) / temperature`, `d H / dz = -p (log p + H) / temperature`.
    """
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    grad_hidden = torch.empty_like(hidden_states)
    grad_weight = torch.zeros_like(weight, dtype=dtype) if needs_weight else weight.new_empty(0)
    has_bias = needs_weight and bias is not None
    grad_bias = torch.zeros(weight.shape[0] if has_bias else 0, dtype=dtype, device=weight.device)
    for rows in tiles(hidden_states.shape[0]):
        z = logits(hidden_states[rows], weight, bias, softcap)
        log_p = log_softmax(z, temperature)
        p, p_log_p = log_p.exp(), xlogx(log_p)
        entropy = -p_log_p.sum(dim=1, keepdim=True)
        grad_z = -p * grad_logprobs[rows, None] - (p_log_p + p * entropy) * grad_entropy[rows, None]
        grad_z.scatter_add_(1, targets[rows, None], grad_logprobs[rows, None])
        grad_z /= temperature
        if softcap is not None:
            grad_z *= 1 - (z / softcap).square()
        narrow = grad_z.to(hidden_states.dtype)
        grad_hidden[rows] = narrow @ weight
        if needs_weight:
            grad_weight += narrow.T @ hidden_states[rows]
        if has_bias:
            grad_bias += grad_z.sum(dim=0)
    return grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
