"""AdamW: one pass over the chunk, a block a program."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.adamw_numbers import adamw_numbers
from fastrlhf.kernels.triton.expm1 import expm1_and_rest

CONFIGS = [
    {"BLOCK": 256, "num_warps": 2},
    {"BLOCK": 1024, "num_warps": 4},
]


def choose_config(size: int) -> dict:
    """Small blocks for small chunks, so that they spread over the card."""
    return CONFIGS[size > 512 * CONFIGS[0]["BLOCK"]]


def adamw(parameters, gradients, exp_avg, exp_avg_sq, bfloat16_copy, *rest):
    """See `fastrlhf.kernels.adamw`."""
    *scalars, lr, step, grad_scale, max_norm, beta1, beta2, eps, weight_decay = rest
    size = parameters.numel()
    config = choose_config(size)
    launch_triton(
        adamw_kernel,
        (triton.cdiv(size, config["BLOCK"]),),
        parameters.device,
        parameters,
        gradients,
        exp_avg,
        exp_avg_sq,
        bfloat16_copy,
        *scalars,
        *adamw_numbers(lr, step, grad_scale, max_norm, beta1, beta2, eps, weight_decay),
        size,
        EVEN=size % 16 == 0,
        **config,
    )


@triton.jit(
    do_not_specialize=[
        "lr",
        "grad_scale",
        "max_norm",
        "log_beta1",
        "log_beta2",
        "correction1",
        "correction2",
        "rest1",
        "beta2",
        "rest2",
        "eps",
        "weight_decay",
        "size",
    ]
)
def adamw_kernel(
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
    grad_scale,
    max_norm,
    log_beta1,
    log_beta2,
    correction1,
    correction2,
    rest1,
    beta2,
    rest2,
    eps,
    weight_decay,
    size,
    EVEN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Grid: one program a block. The copy and the scalar tensors may each be None; the numbers are those of
    `adamw_numbers`. EVEN: `size` is a multiple of 16, without which no load takes 16 bytes."""
    if lr_tensor is not None:
        lr = tl.load(lr_tensor)
    if step_tensor is not None:
        step = tl.load(step_tensor)
        correction1 = -expm1_and_rest(step * log_beta1)[0]
        correction2 = -expm1_and_rest(step * log_beta2)[0]
    if grad_scale_tensor is not None:
        grad_scale = tl.load(grad_scale_tensor)
    factor = 1.0 / grad_scale
    if grad_norm is not None:
        norm = tl.load(grad_norm)
        factor *= tl.minimum(max_norm / (norm + 1e-6), 1.0)
        size = tl.where(norm - norm == 0, size, 0)  # a norm that is not finite skips the step

    if EVEN:
        size = size // 16 * 16
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    g = tl.load(gradients + at, mask=inside, other=0.0).to(tl.float32) * factor
    m = tl.load(exp_avg + at, mask=inside, other=0.0)
    v = tl.load(exp_avg_sq + at, mask=inside, other=0.0)
    p = tl.load(parameters + at, mask=inside, other=0.0)
    m += rest1 * (g - m)
    v = beta2 * v + rest2 * g * g
    root = tl.sqrt(v) / tl.sqrt(correction2) + eps
    p = p * (1.0 - lr * weight_decay) - (lr / correction1) * (m / root)
    tl.store(exp_avg + at, m, mask=inside)
    tl.store(exp_avg_sq + at, v, mask=inside)
    tl.store(parameters + at, p, mask=inside)
    if bfloat16_copy is not None:
        tl.store(bfloat16_copy + at, p.to(tl.bfloat16), mask=inside)
