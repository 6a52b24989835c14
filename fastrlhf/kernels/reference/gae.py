"""Generalised advantage estimation, as the equation reads."""

from __future__ import annotations

import torch

from fastrlhf.kernels.masked import masked_moments


def gae(rewards, values, mask, moments_mask, gamma, lam):
    """See `fastrlhf.kernels.gae`. Computes in float32 at least."""
    dtype = torch.promote_types(rewards.dtype, torch.float32)
    advantages = torch.zeros(rewards.shape, dtype=dtype, device=rewards.device)
    next_value = next_advantage = torch.zeros(rewards.shape[0], dtype=dtype, device=rewards.device)
    for t in reversed(range(rewards.shape[1])):
        value, keep = values[:, t].to(dtype), mask[:, t]
        delta = rewards[:, t].to(dtype) + gamma * next_value - value
        next_advantage = torch.where(keep, delta + gamma * lam * next_advantage, 0.0)
        next_value = torch.where(keep, value, 0.0)
        advantages[:, t] = next_advantage
    returns = torch.where(mask, advantages + values.to(dtype), 0.0)
    return (
        advantages.to(rewards.dtype),
        returns.to(rewards.dtype).contiguous(),
        masked_moments(advantages, moments_mask & mask),
    )
