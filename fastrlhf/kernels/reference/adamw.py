"""AdamW, as the algorithm reads."""

from __future__ import annotations

import torch


def adamw(
    parameters,
    gradients,
    exp_avg,
    exp_avg_sq,
    bfloat16_copy,
    lr_tensor,
    step_tensor,
    grad_scale_tensor,
    grad_norm,
    lr,
    step,
    grad_scale,
    max_norm,
    beta1,
    beta2,
    eps,
    weight_decay,
):
    """See `fastrlhf.kernels.adamw`. Scalars in float64, which leave the dtype of a chunk as it is."""
    lr = lr if lr_tensor is None else lr_tensor.double()
    step = step if step_tensor is None else step_tensor.double()
    factor = 1 / (grad_scale if grad_scale_tensor is None else grad_scale_tensor.double())
    if grad_norm is not None:
        factor = factor * (max_norm / (grad_norm.double() + 1e-6)).clamp(max=1)
    gradient = gradients.to(parameters.dtype) * factor
    new_exp_avg = exp_avg + (1 - beta1) * (gradient - exp_avg)
    new_exp_avg_sq = beta2 * exp_avg_sq + (1 - beta2) * gradient.square()
    root = new_exp_avg_sq.sqrt() / (1 - beta2**step) ** 0.5 + eps
    new_parameters = parameters * (1 - lr * weight_decay) - new_exp_avg / root * (lr / (1 - beta1**step))

    olds, news = [parameters, exp_avg, exp_avg_sq], [new_parameters, new_exp_avg, new_exp_avg_sq]
    if bfloat16_copy is not None:
        olds.append(bfloat16_copy)
        news.append(new_parameters.to(bfloat16_copy.dtype))
    for old, new in zip(olds, news, strict=True):
        old.copy_(new if grad_norm is None else torch.where(grad_norm.isfinite(), new, old))
