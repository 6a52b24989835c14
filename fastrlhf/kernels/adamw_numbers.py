"""What the compiled kernels of `adamw` take of its numbers."""

from __future__ import annotations

from math import expm1, log


def adamw_numbers(lr, step, grad_scale, max_norm, beta1, beta2, eps, weight_decay) -> tuple[float, ...]:
    """In the order of `AdamWNumbers` in csrc/adamw_update.h: worked out in float64, as float32 would lose them.

    `1 - 0.999` is wrong in its fourth digit in float32, and 1 - beta^step is -expm1(step log beta).
    """
    logs = [log(beta) if beta else float("-inf") for beta in (beta1, beta2)]
    corrections = [-expm1(step * each) for each in logs]
    return (
        lr,
        grad_scale,
        max_norm,
        *logs,
        *corrections,
        1 - beta1,
        beta2,
        1 - beta2,
        eps,
        weight_decay,
    )
