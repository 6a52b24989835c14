"""Log-probabilities of the same tokens under the policy and under the reference."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.kernels.checks import check_dims
from fastrlhf.kernels.linear_logprob import linear_logprob


class LinearLogprobWithReference(NamedTuple):
    """What `linear_logprob_with_reference` returns."""

    logprobs: torch.Tensor
    entropy: torch.Tensor
    ref_logprobs: torch.Tensor


def linear_logprob_with_reference(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    ref_hidden_states: torch.Tensor,
    ref_weight: torch.Tensor,
    targets: torch.Tensor,
    *,
    bias: torch.Tensor | None = None,
    ref_bias: torch.Tensor | None = None,
    temperature: float = 1.0,
    softcap: float | None = None,
    entropy_grad: bool = True,
) -> LinearLogprobWithReference:
    """`linear_logprob` of the policy, and the reference's log-probabilities of the same targets, without gradient.

    Args:
        hidden_states, weight, targets, bias, temperature, softcap, entropy_grad: see `linear_logprob`.
        ref_hidden_states: `[N, D']`; the reference may be of another width and dtype.
        ref_weight: `[V', D']`, and ref_bias `[V']`. The weight may be the policy's own (adapters over one base).

    Returns:
        logprobs and entropy as `linear_logprob`, and ref_logprobs, `[N]`, without gradient.

    Raises:
        ValueError, TypeError, IndexError: as `linear_logprob`; what is said of the reference's arguments names them
            by what they are to it.

    Memory: that of `linear_logprob`; nothing is kept of the reference but ref_logprobs.
    """
    check_dims("ref_hidden_states", ref_hidden_states, 2, "[N, D']")
    check_dims("ref_weight", ref_weight, 2, "[V', D']")
    options = {"temperature": temperature, "softcap": softcap, "entropy_grad": entropy_grad}
    policy = linear_logprob(hidden_states, weight, targets, bias=bias, **options)
    with torch.no_grad():
        reference = linear_logprob(ref_hidden_states, ref_weight, targets, bias=ref_bias, **options)
    return LinearLogprobWithReference(*policy, reference.logprobs)
