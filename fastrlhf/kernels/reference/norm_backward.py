"""Gradients of RMS norm and layer norm, as the equations read."""

from __future__ import annotations


def norm_backward(grad_normed, grad_summed, summed, weight, mean, rstd, weight_offset, needs_weight):
    """See `fastrlhf.kernels.norm`. Computes in float32 at least."""
    narrow, dtype = summed.dtype, rstd.dtype
    x, gradient, rstd = summed.to(dtype), grad_normed.to(dtype), rstd.unsqueeze(-1)
    if mean is not None:
        x = x - mean.unsqueeze(-1)
    normed = x * rstd
    scaled = gradient * (weight.to(dtype) + weight_offset)
    grad = scaled - normed * (scaled * normed).mean(dim=-1, keepdim=True)
    if mean is not None:
        grad = grad - scaled.mean(dim=-1, keepdim=True)
    grad = grad * rstd
    if grad_summed is not None:
        grad = grad + grad_summed.to(dtype)
    grad_weight, grad_bias = weight.new_empty(0), weight.new_empty(0)
    if needs_weight:
        grad_weight = (gradient * normed).reshape(-1, weight.shape[0]).sum(dim=0).to(narrow)
    if needs_weight and mean is not None:
        grad_bias = gradient.reshape(-1, weight.shape[0]).sum(dim=0).to(narrow)
    return grad.to(narrow).contiguous(), grad_weight, grad_bias
