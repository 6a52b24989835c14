"""Launcher of the Triton kernels of `linear_logprob`'s gradients."""

from __future__ import annotations

from fastrlhf.kernels.triton.linear_logprob_gradient import along_weight


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
    """See `fastrlhf.kernels.linear_logprob`. No atomics, so the same input gives the same bits."""
    hidden_states, weight, targets = hidden_states.contiguous(), weight.contiguous(), targets.contiguous()
    bias = bias if bias is None else bias.contiguous()
    grads = grad_logprobs.contiguous(), grad_entropy if grad_entropy is None else grad_entropy.contiguous()
    has_bias = needs_weight and bias is not None
    grad_weight = weight.new_zeros(weight.shape if needs_weight else 0)
    grad_bias = weight.new_zeros(weight.shape[0] if has_bias else 0)
    (grad_hidden,) = along_weight(
        *(hidden_states, weight, targets, bias, entropy.contiguous(), logsumexp.contiguous()),
        *(temperature, softcap),
        grads=grads,
        grad_weight=grad_weight if needs_weight else None,
        grad_bias=grad_bias if has_bias else None,
    )
    return grad_hidden.to(hidden_states.dtype), grad_weight, grad_bias
