"""AdamW on many tensors at once: contract, registration and public function."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from math import inf

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.adamw import adamw, check_numbers, scalar
from fastrlhf.kernels.registration import all_plain


@torch.no_grad()
def adamw_each(
    parameters: Sequence[torch.Tensor],
    gradients: Sequence[torch.Tensor],
    exp_avgs: Sequence[torch.Tensor],
    exp_avg_sqs: Sequence[torch.Tensor],
    *,
    bfloat16_copies: Sequence[torch.Tensor | None] | None = None,
    grad_norm: torch.Tensor | None = None,
    max_norm: float | None = None,
    **options: float | int | tuple[float, float],
) -> None:
    """`adamw` on each of many contiguous tensors of any shape, all at the same step.

    Where parameters are float32, the gradients of one dtype, there is a copy of each or of none, and all options are
    numbers, this is one operation: one native call on a CPU, a launch for each 64 tensors by the CUDA kernel.
    Elsewhere it is `adamw` on one after the other.

    Args:
        parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies, grad_norm, max_norm: see `adamw`.
        options: lr, step, betas, eps, weight_decay and grad_scale of `adamw`.

    Raises:
        ValueError, TypeError: as `adamw`.

    Memory: as `adamw`.
    """
    copies = [None] * len(parameters) if bfloat16_copies is None else list(bfloat16_copies)
    rows = list(zip(parameters, gradients, exp_avgs, exp_avg_sqs, copies, strict=True))
    if not rows:
        return
    numbers = not any(isinstance(option, torch.Tensor) for option in options.values())
    if numbers and _are_one_operation(rows, grad_norm):
        _one_operation(rows, grad_norm, max_norm, **options)
        return
    for parameter, gradient, exp_avg, exp_avg_sq, copy in rows:
        adamw(
            parameter.view(-1),
            gradient.view(-1),
            exp_avg.view(-1),
            exp_avg_sq.view(-1),
            bfloat16_copy=None if copy is None else copy.view(-1),
            grad_norm=grad_norm,
            max_norm=max_norm,
            **options,
        )


def _are_one_operation(rows: list[tuple[torch.Tensor | None, ...]], grad_norm: torch.Tensor | None) -> bool:
    kinds, device = {row[1].dtype for row in rows}, rows[0][0].device
    copied = {row[4] is not None for row in rows}
    near = grad_norm is None or grad_norm.device == device
    alike = len(kinds) == len(copied) == 1 and kinds <= {torch.float32, torch.bfloat16}
    return near and alike and all(_is_plain(row, device) for row in rows)


def _is_plain(row: tuple[torch.Tensor | None, ...], device: torch.device) -> bool:
    parameter, _, exp_avg, exp_avg_sq, copy = row
    for tensor in row:
        if tensor is not None and (
            tensor.shape != parameter.shape or tensor.device != device or not tensor.is_contiguous()
        ):
            return False
    wide = all(tensor.dtype == torch.float32 for tensor in (parameter, exp_avg, exp_avg_sq))
    return wide and (copy is None or copy.dtype == torch.bfloat16)


def _one_operation(
    rows, grad_norm, max_norm, *, lr, step, grad_scale=1.0, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0
) -> None:
    check_numbers(lr, step, betas, eps, weight_decay, grad_scale, grad_norm, max_norm)
    # a norm of zero clips nothing
    norm = rows[0][2].new_zeros(()) if grad_norm is None else scalar("grad_norm", grad_norm)
    lists = [list(tensors) for tensors in zip(*rows, strict=True)]
    if lists[4][0] is None:
        lists[4] = []
    bound = inf if max_norm is None else max_norm
    numbers = (
        float(lr),
        int(step),
        float(grad_scale),
        float(bound),
        *map(float, (*betas, eps, weight_decay)),
    )
    if not all_plain((norm, *chain.from_iterable(lists))):
        _adamw_each(norm, *lists, *numbers)
        return
    # `torch.library` takes longer for hundreds of tensors than the kernel
    dispatch.call("adamw_each", norm, *lists, *numbers)
    changed, _, *others = lists
    torch.autograd.graph.increment_version([*changed, *chain.from_iterable(others)])


@dispatch.costs("adamw_each")
def _cost(grad_norm, parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies, *numbers) -> Cost:
    written = nbytes(*parameters, *exp_avgs, *exp_avg_sqs, *bfloat16_copies)
    read = written + nbytes(grad_norm, *gradients)
    return Cost(read, written, 15 * sum(parameter.numel() for parameter in parameters))


@torch.library.custom_op(
    "fastrlhf::adamw_each", mutates_args=("parameters", "exp_avgs", "exp_avg_sqs", "bfloat16_copies")
)
def _adamw_each(
    grad_norm: torch.Tensor,
    parameters: list[torch.Tensor],
    gradients: list[torch.Tensor],
    exp_avgs: list[torch.Tensor],
    exp_avg_sqs: list[torch.Tensor],
    bfloat16_copies: list[torch.Tensor],
    lr: float,
    step: int,
    grad_scale: float,
    max_norm: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """All float32 but for the gradients, of one dtype, and the copies, of which there may be none."""
    lists = parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies
    numbers = lr, step, grad_scale, max_norm, beta1, beta2, eps, weight_decay
    dispatch.call("adamw_each", grad_norm, *lists, *numbers)


@_adamw_each.register_fake
def _(*args):
    return None
