"""The log-probabilities of chosen and rejected sequences straight from hidden states, with what preferences log."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

import torch

from fastrlhf.kernels.checks import check_dtype, check_same_device
from fastrlhf.kernels.linear_logprob import logprobs_beside_top


class PreferenceStat(IntEnum):
    """Where each sum stands in `LinearPreference.stats`. Sums over tokens, never means: micro-batches add up."""

    ENTROPY = 0
    TOKENS = 1
    CHOSEN_CORRECT = 2
    CHOSEN_TOKENS = 3
    CHOSEN_LOGITS = 4
    REJECTED_LOGITS = 5
    REJECTED_TOKENS = 6


class LinearPreference(NamedTuple):
    """What `linear_preference` returns."""

    chosen: torch.Tensor
    rejected: torch.Tensor
    stats: torch.Tensor


def linear_preference(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    targets: torch.Tensor,
    lengths: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    softcap: float | None = None,
) -> LinearPreference:
    """`sum(log p[target])` over each of 2P sequences, P of which were preferred to the others, without whole logits.

    A thin function on `linear_logprob`, and no kernel of its own. What a preference loss makes of a token's
    log-probability is known only when both sequences of its pair have been summed, so no kernel can find the gradients
    of a trainable head in the pass that finds the loss; with a frozen head `linear_logprob` keeps each row's slope, and
    its backward is elementwise as it is. What remains to fuse is a sum of N numbers.

    Args:
        hidden_states: `[N, D]`, float: the states before the tokens that count, of one sequence after the other.
        weight: `[V, D]`, the head's, the same dtype.
        targets: `[N]`, int64: the token that follows each state, in [0, V).
        lengths: `[2P]`, int64: how many of the targets each sequence has, the chosen ones of all pairs first, then the
            rejected ones in the same order; zero is a sequence that sums to zero.
        bias: `[V]`, the same dtype.
        softcap: bound of the logits (Gemma 2's `final_logit_softcapping`).

    Returns:
        chosen and rejected, `[P]`, float32 (float64 for float64 inputs), differentiable in hidden_states, weight and
        bias. stats, float64 `[7]`, laid out as `PreferenceStat` says: over all tokens the entropies (nats) and their
        number; over the chosen ones how many have no likelier word, and their number; over the chosen and over the
        rejected ones the mean logit of the vocabulary (NaN with a softcap, after which it is no longer linear in the
        hidden state); the number of the rejected.

    Raises:
        ValueError, TypeError, IndexError: as `linear_logprob`; lengths that are odd in number or do not add up to N (on
            a CPU; a GPU is not made to wait for the check: there, targets beyond the lengths belong to no sequence).

    Memory: that of `linear_logprob`, and 2P numbers a token.
    """
    _check_lengths(lengths, targets)
    logprobs, entropy, top_logprobs = logprobs_beside_top(
        hidden_states, weight, targets, bias, 1.0, softcap, entropy_grad=False
    )
    numbers = torch.arange(len(targets), device=targets.device)
    sequence = torch.searchsorted(lengths.cumsum(0), numbers, right=True)  # whose each target is
    pairs = len(lengths) // 2
    # a sum over a mask, and no scatter: its bits do not depend on the order of a GPU's threads
    of_sequence = sequence == torch.arange(2 * pairs, device=targets.device)[:, None]
    sums = torch.where(of_sequence, logprobs, 0).sum(dim=1)
    with torch.no_grad():
        is_chosen, is_rejected = sequence < pairs, (sequence >= pairs) & (sequence < 2 * pairs)
        mean_logits = _mean_logits(hidden_states, weight, bias, softcap)
        counted = [
            (entropy, is_chosen | is_rejected),
            (1, is_chosen | is_rejected),
            (logprobs >= top_logprobs, is_chosen),
            (1, is_chosen),
            (mean_logits, is_chosen),
            (mean_logits, is_rejected),
            (1, is_rejected),
        ]
        stats = torch.stack([torch.where(of, what, 0).sum(dtype=torch.float64) for what, of in counted])
    return LinearPreference(sums[:pairs], sums[pairs:], stats)


def _mean_logits(
    hidden_states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, softcap: float | None
) -> torch.Tensor:
    """`[N]`: the mean over the vocabulary of each row's logits, which is the product with the mean of the weight."""
    if softcap is not None:
        return torch.full(hidden_states.shape[:1], torch.nan, device=hidden_states.device)
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    means = (hidden_states.to(dtype) * weight.mean(dim=0, dtype=dtype)).sum(dim=1)
    return means if bias is None else means + bias.mean(dtype=dtype)


def _check_lengths(lengths: torch.Tensor, targets: torch.Tensor) -> None:
    if lengths.dim() != 1 or len(lengths) % 2:
        raise ValueError(
            f"lengths has shape {list(lengths.shape)}, expected [2P]: of chosen and rejected sequences"
        )
    check_dtype("lengths", lengths, (torch.int64,))
    check_same_device(targets=targets, lengths=lengths)
    if lengths.device.type == "cpu":
        total, shortest = int(lengths.sum()), int(lengths.min()) if len(lengths) else 0
        if total != len(targets) or shortest < 0:
            raise ValueError(
                f"lengths add up to {total} with {shortest} the least, expected {len(targets)} targets"
            )
