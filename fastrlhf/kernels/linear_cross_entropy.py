"""The cross-entropy of next tokens straight from hidden states, with what supervised fine-tuning logs."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch

from fastrlhf.device.observe import host_waits
from fastrlhf.kernels.checks import check_dtype, check_shape
from fastrlhf.kernels.linear_logprob import logprobs_beside_top

REDUCTIONS = ("mean", "sum")


class TokenStat(IntEnum):
    """Where each sum stands in `LinearCrossEntropy.stats`. Sums over tokens, never means: micro-batches add up."""

    ENTROPY = 0
    CORRECT = 1
    TOKENS = 2


class LinearCrossEntropy(NamedTuple):
    """What `linear_cross_entropy` returns."""

    loss: torch.Tensor
    stats: torch.Tensor


def linear_cross_entropy(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
    ignore_index: int | None = -100,
    reduction: str = "mean",
    denominator: torch.Tensor | float | None = None,
    confidence_weighted: bool = False,
) -> LinearCrossEntropy:
    """`-sum(log p[target]) / denominator` over the targets that count, without whole logits (see `linear_logprob`).

    A thin function on `linear_logprob`, and no kernel of its own: ignored rows are left out before the product, so
    that they cost nothing, and what remains to fuse is a sum. A kernel that found the gradients in the pass that finds
    the loss would save a trainable head one of four matrix products; `linear_ppo_loss` does that, and at 1,024 rows and
    V = 50,304 its forward and backward take 0.94 (width 576) to 0.98 times (256) the speed of its two operations, since
    every block of rows then reads and writes the gradient of the weight (benchmarks/results/kernels.csv). A frozen
    head's backward is elementwise as it is.

    Args:
        hidden_states: `[N, D]`, float.
        weight: `[V, D]`, the head's, the same dtype.
        targets: `[N]`, int64: the token that follows each state, in [0, V), or `ignore_index`.
        bias: `[V]`, the same dtype.
        softcap: bound of the logits (Gemma 2's `final_logit_softcapping`).
        ignore_index: the target of rows that do not count. None: all count, and a GPU's host is not made to wait for
            how many do.
        reduction: "mean" over the rows that count, or "sum".
        denominator: in place of the mean: what the sum is divided by (a number, or a scalar tensor), at least 1; the
            tokens of the whole batch when this call sees a part of it (transformers' `num_items_in_batch`).
        confidence_weighted: weigh each token's loss by the probability that the model gives it, without gradient
            (dynamic fine-tuning: Wu et al., "On the generalization of SFT", 2025, eq. 9).

    Returns:
        loss, a float32 scalar (float64 for float64 inputs), differentiable in hidden_states, weight and bias; zero
        where no row counts. stats, float64 `[3]`, laid out as `TokenStat` says: the entropies of the rows that count
        (nats), how many of them have no likelier word than their target, and their number.

    Raises:
        ValueError, TypeError, IndexError: as `linear_logprob`; a reduction that is not there, or together with a
            denominator.

    Memory: that of `linear_logprob` on the rows that count, and a copy of these rows.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is {reduction!r}, expected one of {', '.join(REDUCTIONS)}")
    if denominator is not None and reduction == "sum":
        raise ValueError("reduction is 'sum' and a denominator is given: leave one of the two out")
    check_shape("targets", targets, (hidden_states.shape[0],), "[N]")
    check_dtype("targets", targets, (torch.int64,))
    if ignore_index is not None:
        with host_waits("how many targets count"):
            kept = (targets != ignore_index).nonzero().squeeze(1)
        # by indices and not by a mask, whose backward would make the host wait again
        hidden_states, targets = hidden_states.index_select(0, kept), targets.index_select(0, kept)
    logprobs, entropy, top_logprobs = logprobs_beside_top(
        hidden_states, weight, targets, bias, 1.0, softcap, entropy_grad=False
    )
    losses = -logprobs * logprobs.detach().exp() if confidence_weighted else -logprobs
    total = losses.sum()
    if isinstance(denominator, torch.Tensor):
        total = total / denominator.to(total).clamp(min=1)
    elif denominator is not None:
        total = total / max(denominator, 1)
    elif reduction == "mean":
        total = total / max(len(targets), 1)
    with torch.no_grad():
        correct = (logprobs >= top_logprobs).sum()
        tokens = torch.full_like(correct, len(targets))
        stats = torch.stack([entropy.sum(dtype=torch.float64), correct.double(), tokens.double()])
    return LinearCrossEntropy(total, stats)
