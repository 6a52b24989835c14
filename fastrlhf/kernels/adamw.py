"""AdamW on a flat chunk, with clipping and the bfloat16 copy in the same pass: contract and public function."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch

from fastrlhf.device.observe import Cost, nbytes, observer
from fastrlhf.kernels import cpu, dispatch
from fastrlhf.kernels.checks import (
    check_at_least,
    check_dims,
    check_dtype,
    check_same_device,
    check_shape,
)
from fastrlhf.kernels.cpu import adamw as cpu_adamw


@torch.no_grad()
def adamw(
    parameters: torch.Tensor,
    gradients: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    *,
    lr: float | torch.Tensor,
    step: int | torch.Tensor,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    grad_scale: float | torch.Tensor = 1.0,
    grad_norm: torch.Tensor | None = None,
    max_norm: float | None = None,
    bfloat16_copy: torch.Tensor | None = None,
) -> None:
    """One step of AdamW in place, the numbers of `torch.optim.AdamW`.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), algorithm 2. With
    `g = gradients / grad_scale * min(1, max_norm / (grad_norm + 1e-6))`:

        m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g²
        p = (1 - lr weight_decay) p - lr / (1 - beta1^step) m / (sqrt(v / (1 - beta2^step)) + eps)

    Args:
        parameters: `[N]`, float32 (or float64), contiguous: of a bfloat16 model its float32 master.
        gradients: `[N]`, the dtype of parameters or bfloat16, contiguous.
        exp_avg, exp_avg_sq: m and v, like parameters.
        lr: a number, or a scalar tensor on the device (for a CUDA graph), as are step and grad_scale.
        step: how many steps this makes, from one on.
        grad_scale: the loss scale that the gradients still hold.
        grad_norm: scalar tensor on the device: the norm of all gradients, without their scale. No host waits for it. If
            it is not finite nothing changes: the step is skipped.
        max_norm: bound of the norm (needs `grad_norm`); None does not clip.
        bfloat16_copy: `[N]`, bfloat16, contiguous: receives the new parameters, rounded to nearest.

    Raises:
        ValueError, TypeError: shapes, strides, dtypes, devices or numbers that do not fit.

    Memory: nothing. Each number is read and written once; the reference holds a few temporaries of the chunk's size.
    """
    check_dims("parameters", parameters, 1, "[N]")
    check_dtype("parameters", parameters, (torch.float32, torch.float64))
    wanted = {
        "parameters": (parameters, parameters.dtype),
        "gradients": (gradients, parameters.dtype, torch.bfloat16),
        "exp_avg": (exp_avg, parameters.dtype),
        "exp_avg_sq": (exp_avg_sq, parameters.dtype),
        "bfloat16_copy": (bfloat16_copy, torch.bfloat16),
    }
    for name, (tensor, *dtypes) in wanted.items():
        if tensor is not None:
            check_shape(name, tensor, tuple(parameters.shape), "[N]")
            check_dtype(name, tensor, tuple(dtypes))
            if not tensor.is_contiguous():
                raise ValueError(f"{name} has stride {tensor.stride(0)}, expected a contiguous chunk")
    _check_numbers(lr, step, betas, eps, weight_decay, grad_scale, grad_norm, max_norm)
    scalars = {"lr": lr, "step": step, "grad_scale": grad_scale, "grad_norm": grad_norm}
    scalars = {name: _scalar(name, value) for name, value in scalars.items()}
    check_same_device(**{name: tensor for name, (tensor, *_) in wanted.items()}, **scalars)
    _adamw(
        parameters,
        gradients,
        exp_avg,
        exp_avg_sq,
        bfloat16_copy,
        *scalars.values(),
        0.0 if scalars["lr"] is not None else float(lr),
        1 if scalars["step"] is not None else int(step),
        1.0 if scalars["grad_scale"] is not None else float(grad_scale),
        inf if max_norm is None else float(max_norm),
        *map(float, (*betas, eps, weight_decay)),
    )


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
    """`adamw` on each of many contiguous tensors of any shape, all at the same step; on a CPU in one native call.

    Args:
        parameters, gradients, exp_avgs, exp_avg_sqs, bfloat16_copies, grad_norm, max_norm: see `adamw`; the gradients
            are of one dtype.
        options: lr, step, betas, eps, weight_decay and grad_scale of `adamw`, numbers.

    Raises:
        ValueError, TypeError: as `adamw`.
    """
    copies = [None] * len(parameters) if bfloat16_copies is None else list(bfloat16_copies)
    lists = list(zip(parameters, gradients, exp_avgs, exp_avg_sqs, copies, strict=True))
    if not lists:
        return
    if _one_call(lists):
        named = {"grad_scale": 1.0, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.0, **options}
        _check_numbers(**named, grad_norm=grad_norm, max_norm=max_norm)
        lr, step, scale, decay = (named[name] for name in ("lr", "step", "grad_scale", "weight_decay"))
        numbers = [
            lr,
            step,
            scale,
            inf if max_norm is None else max_norm,
            *named["betas"],
            named["eps"],
            decay,
        ]
        norm = _scalar("grad_norm", grad_norm)
        cpu_adamw.adamw_each(*zip(*lists, strict=True), norm, numbers)
        changed = [tensor for row in lists for tensor in (row[0], *row[2:]) if tensor is not None]
        torch.autograd.graph.increment_version(changed)
        return
    for parameter, gradient, exp_avg, exp_avg_sq, copy in lists:
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


def _one_call(lists: list[tuple[torch.Tensor | None, ...]]) -> bool:
    """Whether the CPU's kernel takes all of these, and nobody watches or forces another."""
    if observer() is not None or dispatch.forced_backend() not in (None, "cpu") or cpu.unavailable():
        return False
    kinds = {row[1].dtype for row in lists}
    return kinds <= {torch.float32, torch.bfloat16} and len(kinds) == 1 and all(map(_plain, lists))


def _plain(row: tuple[torch.Tensor | None, ...]) -> bool:
    parameter, _, exp_avg, exp_avg_sq, copy = row
    same = all(tensor.shape == parameter.shape for tensor in row if tensor is not None)
    flat = all(tensor.device.type == "cpu" and tensor.is_contiguous() for tensor in row if tensor is not None)
    wide = all(tensor.dtype == torch.float32 for tensor in (parameter, exp_avg, exp_avg_sq))
    return same and flat and wide and (copy is None or copy.dtype == torch.bfloat16)


def _check_numbers(lr, step, betas, eps, weight_decay, grad_scale, grad_norm, max_norm) -> None:
    """Raise ValueError where a number (not a tensor, which no host waits for) is out of its range."""
    for name, value in (("lr", lr), ("weight_decay", weight_decay), ("eps", eps)):
        if not isinstance(value, torch.Tensor):
            check_at_least(name, value, 0)
    if not isinstance(step, torch.Tensor):
        check_at_least("step", step, 1)
    if not isinstance(grad_scale, torch.Tensor):
        check_at_least("grad_scale", grad_scale, 0, strict=True)
    for name, beta in zip(("betas[0]", "betas[1]"), betas, strict=True):
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"{name} is {beta}, expected a number in [0, 1)")
    if max_norm is not None:
        check_at_least("max_norm", max_norm, 0, strict=True)
        if grad_norm is None:
            raise ValueError(f"max_norm is {max_norm}, but grad_norm is None")


def _scalar(name: str, value: float | torch.Tensor | None) -> torch.Tensor | None:
    """A scalar tensor in float32; None for a number."""
    if not isinstance(value, torch.Tensor):
        return None
    if value.numel() != 1:
        raise ValueError(f"{name} has shape {list(value.shape)}, expected a scalar")
    return value.detach().to(torch.float32)


@dispatch.costs("adamw")
def _cost(parameters, gradients, exp_avg, exp_avg_sq, bfloat16_copy, *rest) -> Cost:
    tensors = (parameters, gradients, exp_avg, exp_avg_sq, bfloat16_copy)
    read = nbytes(*tensors, *(given for given in rest if isinstance(given, torch.Tensor)))
    return Cost(read, nbytes(parameters, exp_avg, exp_avg_sq, bfloat16_copy), 15 * parameters.numel())


@torch.library.custom_op(
    "fastrlhf::adamw", mutates_args=("parameters", "exp_avg", "exp_avg_sq", "bfloat16_copy")
)
def _adamw(
    parameters: torch.Tensor,
    gradients: torch.Tensor,
    exp_avg: torch.Tensor,
    exp_avg_sq: torch.Tensor,
    bfloat16_copy: torch.Tensor | None,
    lr_tensor: torch.Tensor | None,
    step_tensor: torch.Tensor | None,
    grad_scale_tensor: torch.Tensor | None,
    grad_norm: torch.Tensor | None,
    lr: float,
    step: int,
    grad_scale: float,
    max_norm: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """A tensor given counts in place of the number of its name."""
    dispatch.call(
        "adamw",
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
    )


@_adamw.register_fake
def _(*args):
    return None
