"""Generalised advantage estimation, as the equation reads."""

from __future__ import annotations

import torch

from fastrlhf.kernels.masked import masked_moments


def gae(rewards, values, mask, moments_mask, gamma, lam):
    """See `fastrlhf.kernels.gae`. Computes in float32 at least."""
    dtype = torch.promote_types(rewards.dtype, torch.float32)
    advantages = torch.empty(rewards.shape, dtype=rewards.dtype, device=rewards.device)
    returns = torch.empty_like(advantages)
    moments = torch.zeros(3, dtype=torch.float64, device=rewards.device)
    next_value = next_advantage = torch.zeros(rewards.shape[0], dtype=dtype, device=rewards.device)
    for t in reversed(range(rewards.shape[1])):
        value, keep = values[:, t].to(dtype), mask[:, t]
        delta = rewards[:, t].to(dtype) + gamma * next_value - value
        next_advantage = torch.where(keep, delta + gamma * lam * next_advantage, 0.0)
        next_value = torch.where(keep, value, 0.0)
        advantages[:, t] = next_advantage
        returns[:, t] = next_advantage + next_value
        moments += masked_moments(next_advantage, moments_mask[:, t] & keep)
    return advantages, returns, moments
