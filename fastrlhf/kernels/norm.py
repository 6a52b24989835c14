"""RMS norm and layer norm, with the residual addition before them: contract, registration and public functions."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import float32_inputs
from fastrlhf.kernels.checks import FLOATS, check_at_least, check_dtype, check_same_device, check_shape
from fastrlhf.kernels.registration import operation


class AddedNorm(NamedTuple):
    """What a norm returns that was given a residual."""

    normed: torch.Tensor
    summed: torch.Tensor


def rms_norm(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
    weight_offset: float = 0.0,
    cast_before_weight: bool = True,
) -> torch.Tensor | AddedNorm:
    """`x / sqrt(mean(x²) + eps) * (weight + weight_offset)` over the last dimension, in float32 whatever goes in.

    Source: Zhang and Sennrich, "Root mean square layer normalization" (2019), eq. 4.

    Args:
        hidden_states: `[..., D]`, float; D at least one. Rows may lie apart, as in a view of a fused projection.
        weight: `[D]`, the same dtype.
        eps: added to the mean square.
        residual: `[..., D]`, the same dtype: `x = hidden_states + residual`, rounded to it, is normalised.
        weight_offset: added to the weight; 1 for Gemma.
        cast_before_weight: round the normalised value to the inputs' dtype before the weight, as Llama does; False
            rounds once after it, as Gemma does. The same for float32.

    Returns:
        Like `hidden_states`; with a residual an `AddedNorm`, whose `summed` is x. Differentiable in every tensor.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or numbers that do not fit.

    Memory: the outputs; for the backward the rows that were normalised and one float32 a row.
    """
    return _checked(hidden_states, weight, None, residual, eps, weight_offset, cast_before_weight)


def layer_norm(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    *,
    eps: float,
    residual: torch.Tensor | None = None,
) -> torch.Tensor | AddedNorm:
    """`(x - mean(x)) / sqrt(var(x) + eps) * weight + bias` over the last dimension, in float32 whatever goes in.

    Source: Ba et al., "Layer normalization" (2016), eq. 4; the variance is the biased one.

    Args:
        hidden_states: `[..., D]`, float; D at least one. Rows may lie apart, as in a view of a fused projection.
        weight, bias: `[D]`, the same dtype.
        eps: added to the variance.
        residual: `[..., D]`, the same dtype: `x = hidden_states + residual`, rounded to it, is normalised.

    Returns:
        Like `hidden_states`; with a residual an `AddedNorm`, whose `summed` is x. Differentiable in every tensor.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or numbers that do not fit.

    Memory: the outputs; for the backward the rows that were normalised and two float32 a row.
    """
    return _checked(hidden_states, weight, bias, residual, eps, 0.0, False)


def _checked(hidden_states, weight, bias, residual, eps, weight_offset, cast_before_weight):
    hidden_states, weight, bias, residual = float32_inputs(hidden_states, weight, bias, residual)
    check_dtype("hidden_states", hidden_states, FLOATS)
    if hidden_states.dim() == 0 or hidden_states.shape[-1] == 0:
        raise ValueError(
            f"hidden_states has shape {list(hidden_states.shape)}, expected [..., D] with D at least one"
        )
    check_shape("weight", weight, (hidden_states.shape[-1],), "[D]")
    check_dtype("weight", weight, (hidden_states.dtype,))
    if bias is not None:
        check_shape("bias", bias, tuple(weight.shape), "[D]")
        check_dtype("bias", bias, (hidden_states.dtype,))
    if residual is not None:
        check_shape("residual", residual, tuple(hidden_states.shape), "[..., D]")
        check_dtype("residual", residual, (hidden_states.dtype,))
    check_same_device(hidden_states=hidden_states, weight=weight, bias=bias, residual=residual)
    check_at_least("eps", eps, 0)
    normed, summed, _, _ = _norm(
        hidden_states, weight, bias, residual, float(eps), float(weight_offset), cast_before_weight
    )
    return normed if residual is None else AddedNorm(normed, summed)


@dispatch.costs("norm")
def _cost(hidden_states, weight, bias, residual, eps, weight_offset, cast_before_weight) -> Cost:
    rows = hidden_states.numel() // hidden_states.shape[-1]
    statistics = rows * torch.promote_types(hidden_states.dtype, torch.float32).itemsize
    written = nbytes(hidden_states, residual) + statistics * (1 if bias is None else 2)
    return Cost(
        nbytes(hidden_states, weight, bias, residual),
        written,
        hidden_states.numel() * (5 if bias is None else 8),
    )


@dispatch.costs("norm_backward")
def _backward_cost(grad_normed, grad_summed, summed, weight, mean, rstd, weight_offset, needs_weight) -> Cost:
    of_weight = nbytes(weight) * (1 if mean is None else 2) if needs_weight else 0
    read = nbytes(grad_normed, grad_summed, summed, weight, mean, rstd)
    return Cost(read, nbytes(summed) + of_weight, 12 * summed.numel())


@operation("norm")
def _norm(
    hidden_states: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    weight_offset: float,
    cast_before_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Layer norm with a bias, RMS norm without. The result, the sum (empty without a residual), and of each row,
    `[...]`, the mean (empty in an RMS norm) and the reciprocal of the root."""
    return dispatch.call(
        "norm", hidden_states, weight, bias, residual, eps, weight_offset, cast_before_weight
    )


@_norm.register_fake
def _(hidden_states, weight, bias, residual, eps, weight_offset, cast_before_weight):
    shape = hidden_states.shape
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    return (
        hidden_states.new_empty(shape),
        hidden_states.new_empty((0,) if residual is None else shape),
        hidden_states.new_empty((0,) if bias is None else shape[:-1], dtype=dtype),
        hidden_states.new_empty(shape[:-1], dtype=dtype),
    )


@operation("norm_backward")
def _norm_backward(
    grad_normed: torch.Tensor,
    grad_summed: torch.Tensor | None,
    summed: torch.Tensor,
    weight: torch.Tensor,
    mean: torch.Tensor | None,
    rstd: torch.Tensor,
    weight_offset: float,
    needs_weight: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of the rows normalised (`grad_summed` added), weight and bias (empty unless `needs_weight`; that of the
    bias empty in an RMS norm, which has no mean). With n = (x - mean) rstd and h = g (weight + offset):

    `dx = rstd (h - n mean(h n) - mean(h))`, the last term in a layer norm only; `dweight = sum(g n)`, `dbias = sum(g)`.
    """
    return dispatch.call(
        "norm_backward", grad_normed, grad_summed, summed, weight, mean, rstd, weight_offset, needs_weight
    )


@_norm_backward.register_fake
def _(grad_normed, grad_summed, summed, weight, mean, rstd, weight_offset, needs_weight):
    return (
        summed.new_empty(summed.shape),
        weight.new_empty(weight.shape if needs_weight else (0,)),
        weight.new_empty(weight.shape if needs_weight and mean is not None else (0,)),
    )


def _setup_context(ctx, inputs, output):
    hidden_states, weight, bias, residual, _, ctx.weight_offset, _ = inputs
    _, summed, mean, rstd = output
    ctx.mark_non_differentiable(mean, rstd)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(hidden_states if residual is None else summed, weight, mean, rstd)
    ctx.has_residual, ctx.is_centred = residual is not None, bias is not None


def _backward(ctx, grad_normed, grad_summed, *_):
    summed, weight, mean, rstd = ctx.saved_tensors
    grad_summed = grad_summed if ctx.has_residual else None
    grad_rows, grad_weight, grad_bias = grad_summed, None, None
    if grad_normed is not None:
        needs_weight = ctx.needs_input_grad[1] or ctx.needs_input_grad[2]
        grad_rows, grad_weight, grad_bias = _norm_backward(
            grad_normed,
            grad_summed,
            summed,
            weight,
            mean if ctx.is_centred else None,
            rstd,
            ctx.weight_offset,
            needs_weight,
        )
    return (
        grad_rows if ctx.needs_input_grad[0] else None,
        grad_weight if ctx.needs_input_grad[1] else None,
        grad_bias if ctx.needs_input_grad[2] else None,
        grad_rows if ctx.needs_input_grad[3] else None,
        None,
        None,
        None,
    )


_norm.register_autograd(_backward, setup_context=_setup_context)
