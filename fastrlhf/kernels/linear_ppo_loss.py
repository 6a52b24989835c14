"""PPO's loss straight from hidden states: `linear_logprob` and `ppo_loss` as one function."""

from __future__ import annotations

from typing import Any

import torch

from fastrlhf.kernels.linear_logprob import linear_logprob
from fastrlhf.kernels.ppo_loss import PPOLoss, ppo_loss


def linear_ppo_loss(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    old_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    mask: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy_coef: float = 0.0,
    **options: Any,
) -> PPOLoss:
    """`ppo_loss` of the log-probabilities and entropies that `linear_logprob` finds, differentiable in hidden_states,
    weight and bias, and in the values among the options.

    Two passes over the tiles of logits, the least that a head needs without keeping the logits: a token's gradient is
    known only when its log-probability is, and that only when all of its logits are.

    - Trainable head: the first pass (one matrix product) gives the statistics; the second, in the backward, computes
      the tiles again (one) and turns them into the gradients of hidden_states and weight (two). Keeping the logits
      of some rows instead would save that one product, hold rows x V of them, and read and write the gradient of the
      weight once for those rows: at V = 50,304, D = 576 and 128 rows (26 MB) on two threads of a Zen 5 that traffic
      takes as long as the product.
    - Frozen head: one pass in all. The slopes of the log-probability are found beside the statistics (two products),
      and those of the entropy too if `entropy_coef` is not zero (three).

    Args:
        hidden_states, weight, targets, bias, temperature, softcap: see `linear_logprob`, N tokens.
        old_logprobs, advantages: `[N]`, float32 (float64 for float64 hidden_states).
        mask: `[N]`, bool: the tokens that count.
        entropy_coef: see `ppo_loss`; at zero the entropy is only watched, and costs no product.
        options: the other keyword arguments of `ppo_loss`.

    Returns:
        loss and stats, as `ppo_loss`.

    Raises:
        ValueError, TypeError, IndexError: as `linear_logprob` and `ppo_loss`.

    Memory: that of `linear_logprob`, and a few numbers a token.
    """
    logprobs, entropy = linear_logprob(
        hidden_states,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        softcap=softcap,
        entropy_grad=entropy_coef != 0,
    )
    return ppo_loss(
        logprobs, old_logprobs, advantages, mask, entropy=entropy, entropy_coef=entropy_coef, **options
    )
