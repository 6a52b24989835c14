"""The clipped PPO objective with its gradients, as the equations read."""

from __future__ import annotations

import torch

from fastrlhf.kernels.kl import kl_estimate


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
    token_weights,
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
    """See `fastrlhf.kernels.ppo_loss`. Computes in float32 at least; the gradients are written out by hand."""
    dtype = torch.promote_types(logprobs.dtype, torch.float32)
    x, advantage = logprobs.to(dtype), advantages.to(dtype)
    denominator, value_denominator = denominators.to(dtype)
    token_weight = 1.0 if token_weights is None else token_weights.to(dtype)
    share = token_weight / denominator
    zero = torch.zeros((), dtype=dtype, device=x.device)

    def total(term, kept=mask):
        return torch.where(kept, term, 0.0).sum(dtype=torch.float64)

    # policy
    log_ratio = x - old_logprobs.to(dtype)
    inside = log_ratio.abs() <= log_ratio_clamp
    log_ratio = log_ratio.clamp(-log_ratio_clamp, log_ratio_clamp)
    ratio = log_ratio.exp()
    unclipped, clipped = -advantage * ratio, -advantage * ratio.clamp(1 - cliprange, 1 + cliprange_high)
    is_clipped = clipped > unclipped
    policy_loss = torch.maximum(unclipped, clipped)
    bound = torch.where(advantage < 0, -advantage * dual_clip, torch.inf)
    is_bounded = policy_loss > bound
    weight = 1.0 if weights is None else weights.to(dtype)
    policy_loss = weight * torch.minimum(policy_loss, bound)
    slope = weight * unclipped
    slope = torch.where(is_clipped | is_bounded | ~inside, 0.0, slope)

    # KL to the reference
    kl = zero.expand_as(x)
    if ref_logprobs is not None:
        reference = ref_logprobs.to(dtype)
        kl = kl_estimate(x, reference, kl_estimator)
        kl_slope = {"k1": torch.ones_like(x), "k2": x - reference, "k3": -(reference - x).expm1()}[
            kl_estimator
        ]
        if kl_coef != 0:
            slope = slope + kl_coef * kl_slope

    # value
    value_loss, value_is_clipped, grad_values = zero.expand_as(x), torch.zeros_like(mask), x.new_zeros(0)
    if values is not None:
        value, old_value, target = values.to(dtype), old_values.to(dtype), returns.to(dtype)
        clipped_value = torch.minimum(
            torch.maximum(value, old_value - cliprange_value), old_value + cliprange_value
        )
        square, clipped_square = (value - target).square(), (clipped_value - target).square()
        value_is_clipped = clipped_square > square
        value_loss = 0.5 * torch.maximum(square, clipped_square)
        grad_values = torch.where(value_is_clipped, 0.0, vf_coef * (value - target) / value_denominator)
        grad_values = torch.where(value_mask & (vf_coef != 0), grad_values, 0.0)

    # entropy
    bonus, grad_entropy = zero.expand_as(x), x.new_zeros(0)
    if entropy is not None:
        bonus = entropy.to(dtype)
        grad_entropy = torch.where(mask, -entropy_coef * share, 0.0)

    # A term that is only watched (coefficient zero) stays out: k3 overflows where the policy finds a token next
    # to impossible that the reference does not, and 0 x inf would make the loss NaN.
    objective = policy_loss
    if entropy_coef != 0:
        objective = objective - entropy_coef * bonus
    if kl_coef != 0:
        objective = objective + kl_coef * kl

    stats = torch.stack(
        [
            total(policy_loss),
            total(value_loss, value_mask),
            total(bonus),
            total(kl),
            total(0.5 * log_ratio.square()),
            total(ratio),
            total(is_clipped.to(dtype)),
            total(value_is_clipped.to(dtype), value_mask),
            mask.sum(dtype=torch.float64),
            value_mask.sum(dtype=torch.float64),
        ]
    )
    loss = total(token_weight * objective) / denominators[0]
    if vf_coef != 0:
        loss = loss + vf_coef * stats[1] / denominators[1]
    grad_logprobs = torch.where(mask, share * slope, 0.0)
    return (
        loss.to(dtype),
        stats,
        grad_logprobs.to(logprobs.dtype).contiguous(),
        grad_values.to(logprobs.dtype).contiguous(),
        grad_entropy.to(logprobs.dtype).contiguous(),
    )
