"""Gradients of `linear_logprob`, one tile of rows at a time, the logits computed again."""

from __future__ import annotations

import torch

from fastrlhf.kernels.reference.linear_logprob import logits, logits_gradient, tiles


def linear_logprob_backward(
    grad_logprobs,
    grad_entropy,
    hidden_states,
    weight,
    targets,
    bias,
    entropy,
    logsumexp,
    temperature,
    softcap,
    needs_weight,
):
    """See `fastrlhf.kernels.linear_logprob`; `grad_entropy` may be None.

    `logsumexp` is not used: one float64 number is not enough for the probabilities of float64 logits near 1e4.
    """
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    grad_hidden = torch.empty(hidden_states.shape, dtype=hidden_states.dtype, device=hidden_states.device)
    has_bias = needs_weight and bias is not None
    grad_weight = torch.zeros(weight.shape if needs_weight else 0, dtype=dtype, device=weight.device)
    grad_bias = torch.zeros(weight.shape[0] if has_bias else 0, dtype=dtype, device=weight.device)
    for tile in tiles(hidden_states.shape[0]):
        z = logits(hidden_states[tile], weight, bias, softcap)
        grad_z = logits_gradient(
            z,
            torch.log_softmax(z / temperature, dim=-1),
            targets[tile, None],
            entropy[tile],
            grad_logprobs[tile],
            None if grad_entropy is None else grad_entropy[tile],
            temperature,
            softcap,
        )
        narrow = grad_z.to(hidden_states.dtype)
        grad_hidden[tile] = narrow @ weight
        if needs_weight:
            grad_weight += narrow.T @ hidden_states[tile]
        if has_bias:
            grad_bias += grad_z.sum(dim=0)
    return grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype)
