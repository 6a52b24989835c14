"""Estimators of the KL divergence between the policy and the reference from log-probabilities of sampled tokens."""

from __future__ import annotations

import torch

KL_ESTIMATORS = ("k1", "k2", "k3")


def kl_estimate(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, estimator: str = "k1") -> torch.Tensor:
    """KL(policy ‖ reference) of each token, in nats, from samples of the policy.

    Source: J. Schulman, "Approximating KL divergence" (2020). With r = log p_ref - log p:
    k1 = -r (unbiased), k2 = r²/2 (biased, low variance), k3 = e^r - 1 - r (unbiased, never negative).

    Args:
        logprobs: policy's log-probabilities of the tokens it sampled, `[...]`.
        ref_logprobs: the reference's, like `logprobs`.
        estimator: "k1", "k2" or "k3".

    Returns:
        Like `logprobs`.

    Raises:
        ValueError: an unknown estimator.
    """
    log_ratio = ref_logprobs - logprobs
    match estimator:
        case "k1":
            return -log_ratio
        case "k2":
            return 0.5 * log_ratio.square()
        case "k3":
            return log_ratio.expm1() - log_ratio
    raise ValueError(f"kl_estimator is {estimator!r}, expected one of {', '.join(KL_ESTIMATORS)}")


def weighted_kl(logprobs: torch.Tensor, ref_logprobs: torch.Tensor, log_ratio: torch.Tensor) -> torch.Tensor:
    """k3 times the probability ratio: its gradient is that of the reverse KL, whatever policy the tokens are from.

    Source: DeepSeek-AI, "DeepSeek-V3.2" (2025), eq. 7.

    Args:
        logprobs, ref_logprobs: `[...]`.
        log_ratio: log of the policy's probability over that of the policy that sampled, in the shape of `logprobs` or
            one that broadcasts to it; differentiable, as the ratio is part of what is learned.
    """
    return log_ratio.exp() * kl_estimate(logprobs, ref_logprobs, "k3")
