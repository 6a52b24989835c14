"""PPO's loss from hidden states on the Triton kernels of `linear_logprob` and `ppo_loss`.

The logits are computed twice, a part of the vocabulary at a time. Holding those of some rows, as the CPU does, would
save a product of 2 V D operations a row, and cost a row 8 V D / rows bytes of traffic on a float32 gradient of the
weight: by arithmetic, a card of 500 TFLOP/s and 3 TB/s saves nothing by it with fewer than 700 rows, which at
V = 128,256 are 350 MB. No GPU has measured it.
"""

from __future__ import annotations

from fastrlhf.kernels.linear_ppo_loss_arguments import loss_operands, with_entropy_gradient
from fastrlhf.kernels.triton.linear_logprob import linear_logprob
from fastrlhf.kernels.triton.linear_logprob_backward import linear_logprob_backward
from fastrlhf.kernels.triton.ppo_loss import ppo_loss


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
    """See `fastrlhf.kernels.linear_ppo_loss`. No atomics, so the same input gives the same bits."""
    head = hidden_states, weight, targets, bias
    logprobs, entropy, logsumexp, *_ = linear_logprob(*head, temperature, softcap, 0)
    operands = loss_operands(logprobs, entropy, values, tensors, numbers, kl_estimator)
    loss, stats, grad_logprobs, grad_values, grad_entropy = ppo_loss(*operands)
    grads = [hidden_states.new_empty(0), weight.new_empty(0), weight.new_empty(0)]
    if gradients:
        grads = linear_logprob_backward(
            grad_logprobs,
            grad_entropy if with_entropy_gradient(numbers) else None,
            *head,
            entropy,
            logsumexp,
            temperature,
            softcap,
            gradients > 1,
        )
    return loss, stats, *grads, grad_values
