"""PPO's loss from hidden states on the Triton kernels of `linear_logprob` and `ppo_loss`.

The logits are computed twice, a part of the vocabulary at a time. Holding those of some rows, as the CPU does, would
save a product of 2 V D operations a row, and cost a row 8 V D / rows bytes of traffic on a float32 gradient of the
weight: by arithmetic, a card of 500 TFLOP/s and 3 TB/s saves nothing by it with fewer than 700 rows, which at
V = 128,256 are 350 MB. No GPU has measured it.
"""

from __future__ import annotations

from fastrlhf.kernels.linear_ppo_loss_arguments import by_parts
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
    head = hidden_states, weight, targets, bias, temperature, softcap
    options = values, tensors, numbers, kl_estimator
    return by_parts(linear_logprob, linear_logprob_backward, ppo_loss, head, options, gradients)
