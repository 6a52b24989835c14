"""AdamW on a flat chunk, with clipping and the bfloat16 copy in the same pass: contract and public function."""

from __future__ import annotations

from math import inf

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.checks import (
    check_at_least,
    check_dims,
    check_dtype,
    check_same_device,
    check_shape,
)


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
    check_numbers(lr, step, betas, eps, weight_decay, grad_scale, grad_norm, max_norm)
    scalars = {"lr": lr, "step": step, "grad_scale": grad_scale, "grad_norm": grad_norm}
    scalars = {name: scalar(name, value) for name, value in scalars.items()}
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


def check_numbers(lr, step, betas, eps, weight_decay, grad_scale, grad_norm, max_norm) -> None:
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


def scalar(name: str, value: float | torch.Tensor | None) -> torch.Tensor | None:
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
