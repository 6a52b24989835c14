"""Launcher of the C++ kernel of the clipped PPO objective."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu import serves, unavailable
from fastrlhf.kernels.kl import KL_ESTIMATORS

__all__ = ["ppo_loss", "serves", "unavailable"]


def ppo_loss(
    logprobs,
    old_logprobs,
    advantages,
    mask,
    values,
    old_values,
    returns,
    value_mask,
    entropy,
    ref_logprobs,
    weights,
    denominators,
    cliprange,
    cliprange_high,
    dual_clip,
    log_ratio_clamp,
    cliprange_value,
    vf_coef,
    entropy_coef,
    kl_coef,
    kl_estimator,
):
    """See `fastrlhf.kernels.ppo_loss`. Bit for bit the same for every number of threads."""
    given = (logprobs, old_logprobs, advantages, mask, values, old_values, returns, value_mask)
    given += (entropy, ref_logprobs, weights)
    assert all(tensor is None or tensor.shape == logprobs.shape for tensor in given)
    # Held by name until the kernel returns: a contiguous copy dies with its last reference.
    inputs = [None if tensor is None else tensor.contiguous() for tensor in (*given, denominators)]
    loss, stats = torch.empty((), dtype=torch.float32), torch.empty(10, dtype=torch.float64)
    gradients = [
        torch.empty(0 if tensor is None else logprobs.shape, dtype=torch.float32)
        for tensor in (logprobs, values, entropy)
    ]
    outputs = (loss, stats, *gradients)
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in (*inputs, *outputs)]
    numbers = (
        cliprange,
        cliprange_high,
        dual_clip,
        log_ratio_clamp,
        cliprange_value,
        vf_coef,
        entropy_coef,
        kl_coef,
    )
    native.module("_cpu").ppo_loss(
        addresses, logprobs.numel(), numbers, KL_ESTIMATORS.index(kl_estimator) + 1
    )
    return outputs
