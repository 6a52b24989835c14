"""Launcher of the C++ kernel of generalised advantage estimation."""

from __future__ import annotations

import torch

from fastrlhf.kernels import native


def gae(rewards, values, mask, moments_mask, gamma, lam):
    """See `fastrlhf.kernels.gae`. Bit for bit the same for every number of threads."""
    # Held by name until the kernel returns: a contiguous copy dies with its last reference.
    inputs = [tensor.contiguous() for tensor in (rewards, values, mask, moments_mask)]
    assert all(tensor.shape == rewards.shape for tensor in inputs)
    advantages, returns = torch.empty_like(inputs[0]), torch.empty_like(inputs[0])
    moments = torch.empty(3, dtype=torch.float64)
    addresses = [tensor.data_ptr() for tensor in (*inputs, advantages, returns, moments)]
    native.module("_cpu").gae(*addresses, *rewards.shape, gamma, gamma * lam)
    return advantages, returns, moments
