"""PPO's loss from hidden states, one tile of rows at a time."""

from __future__ import annotations

import torch

from fastrlhf.kernels.linear_ppo_loss_arguments import loss_operands, with_entropy_gradient
from fastrlhf.kernels.reference.linear_logprob import logits, logits_gradient, tiles, xlogx
from fastrlhf.kernels.reference.ppo_loss import ppo_loss


def linear_ppo_loss(
    hidden_states,
    weight,
    targets,
    bias,
    values,
    temperature,
    softcap,
    tensors,
    numbers,
    kl_estimator,
    gradients,
):
    """See `fastrlhf.kernels.linear_ppo_loss`."""
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    logprobs, entropy = hidden_states.new_empty(2, hidden_states.shape[0], dtype=dtype)
    grad_hidden = hidden_states.new_empty(hidden_states.shape if gradients > 0 else 0)
    grad_weight = weight.new_zeros(weight.shape if gradients > 1 else 0, dtype=dtype)
    has_bias = gradients > 1 and bias is not None
    grad_bias = weight.new_zeros(weight.shape[0] if has_bias else 0, dtype=dtype)
    options = (logprobs, entropy, values, tensors, numbers, kl_estimator)
    for tile in tiles(hidden_states.shape[0]):
        z = logits(hidden_states[tile], weight, bias, softcap)
        log_p = torch.log_softmax(z / temperature, dim=-1)
        chosen = targets[tile, None]
        logprobs[tile] = log_p.gather(1, chosen).squeeze(1)
        entropy[tile] = -xlogx(log_p).sum(dim=1)
        if not gradients:
            continue
        _, _, grad_logprobs, _, grad_entropy = ppo_loss(*loss_operands(*options, tile))
        grad_z = logits_gradient(
            z,
            log_p,
            chosen,
            entropy[tile],
            grad_logprobs,
            grad_entropy if with_entropy_gradient(numbers) else None,
            temperature,
            softcap,
        )
        narrow = grad_z.to(hidden_states.dtype)
        grad_hidden[tile] = narrow @ weight
        if gradients > 1:
            grad_weight += narrow.T @ hidden_states[tile]
        if has_bias:
            grad_bias += grad_z.sum(dim=0)
    # The sums of the statistics are those of all tokens at once, so that they are exactly `ppo_loss`'s.
    loss, stats, _, grad_values, _ = ppo_loss(*loss_operands(*options))
    return loss, stats, grad_hidden, grad_weight.to(weight.dtype), grad_bias.to(weight.dtype), grad_values
