"""RMS norm and layer norm, as the equations read."""

from __future__ import annotations

import torch


def norm(hidden_states, weight, bias, residual, eps, weight_offset, cast_before_weight):
    """See `fastrlhf.kernels.norm`. Computes in float32 at least."""
    narrow, dtype = hidden_states.dtype, torch.promote_types(hidden_states.dtype, torch.float32)
    summed = hidden_states if residual is None else (hidden_states + residual).contiguous()
    x = summed.to(dtype)
    mean = x.new_empty(0)
    if bias is not None:
        mean = x.mean(dim=-1, keepdim=True)
        x = x - mean
    rstd = torch.rsqrt(x.square().mean(dim=-1, keepdim=True) + eps)
    normed = x * rstd
    if cast_before_weight:
        normed = normed.to(narrow).to(dtype)
    normed = normed * (weight.to(dtype) + weight_offset)
    if bias is not None:
        normed, mean = normed + bias.to(dtype), mean.squeeze(-1)
    summed = summed.new_empty(0) if residual is None else summed
    return normed.to(narrow).contiguous(), summed, mean.contiguous(), rstd.squeeze(-1).contiguous()
