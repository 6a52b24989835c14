"""The matrix product of a layer: contract, registration and public function."""

from __future__ import annotations

import math

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import matrix_inputs
from fastrlhf.kernels.base_weight import BaseWeight, check_base
from fastrlhf.kernels.checks import FLOATS, check_dtype, check_same_device, check_shape
from fastrlhf.kernels.registration import operation


def linear(x: torch.Tensor, weight: BaseWeight, bias: torch.Tensor | None = None) -> torch.Tensor:
    """`x weight^T + bias`, by whichever product is fastest here.

    On a CPU in float32: up to 32 rows by a kernel that reads the weight as it lies, once (float32 or int8), and
    whose rows have the same bits in every batch up to 32; more rows by the provider that `kernels.products` measured.

    Args:
        x: `[..., in]`, float.
        weight: `[out, in]`, any float dtype (converted to that of x), or a `QuantizedWeight`.
        bias: `[out]`, the dtype of x.

    Returns:
        `[..., out]` in the dtype of x, differentiable in x, a float weight and bias.

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Memory: a quantised weight is never held in full: on a CPU a tile of it (4 MB), on a GPU what a program needs. The
    reference holds it. Packed copies of float weights are kept within `kernels.products.limit_packed`.
    """
    if x.dim() == 0:
        raise ValueError("x has shape [], expected [..., in]")
    x, bias = matrix_inputs(x, bias)
    check_dtype("x", x, FLOATS)
    parts = check_base(weight, x.shape[-1])
    if bias is not None:
        check_shape("bias", bias, (parts[0].shape[0],), "[out]")
        check_dtype("bias", bias, (x.dtype,))
    check_same_device(x=x, weight=parts[0], bias=bias)
    if x.dim() == 2:
        return _linear(x, *parts, bias)
    y = _linear(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), *parts, bias)
    return y.view(*x.shape[:-1], y.shape[1])


@dispatch.costs("linear")
def _cost(x, weight, scales, scale_scales, offset, bias) -> Cost:
    (rows, width), out = x.shape, weight.shape[0]
    read = nbytes(x, weight, scales, scale_scales, offset, bias)
    return Cost(read, rows * out * x.element_size(), 2 * rows * out * width)


@dispatch.costs("linear_backward")
def _backward_cost(grad, x, weight, scales, scale_scales, offset, needs_x, needs_weight, needs_bias) -> Cost:
    (rows, out), width = grad.shape, x.shape[1]
    written = grad.element_size() * (needs_x * rows * width + needs_bias * out) + needs_weight * nbytes(
        weight
    )
    flops = 2 * rows * out * width * (needs_x + needs_weight) + needs_bias * rows * out
    return Cost(nbytes(grad, x, weight, scales, scale_scales, offset), written, flops)


@operation("linear")
def _linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    scale_scales: torch.Tensor | None,
    offset: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    return dispatch.call("linear", x, weight, scales, scale_scales, offset, bias)


@_linear.register_fake
def _(x, weight, scales, scale_scales, offset, bias):
    return x.new_empty(x.shape[0], weight.shape[0])


@operation("linear_backward")
def _linear_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    scale_scales: torch.Tensor | None,
    offset: torch.Tensor | None,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight and bias, each empty unless it is needed. Without `needs_weight` x may have no rows."""
    needs = needs_x, needs_weight, needs_bias
    return dispatch.call("linear_backward", grad, x, weight, scales, scale_scales, offset, *needs)


@_linear_backward.register_fake
def _(grad, x, weight, scales, scale_scales, offset, needs_x, needs_weight, needs_bias):
    return (
        x.new_empty(grad.shape[0], x.shape[1]) if needs_x else x.new_empty(0),
        weight.new_empty(weight.shape) if needs_weight else weight.new_empty(0),
        x.new_empty(weight.shape[0] if needs_bias else 0),
    )


def _setup_context(ctx, inputs, output):
    x, weight, scales, scale_scales, offset, bias = inputs
    # x is what the weight's gradient needs, and nothing else: a frozen weight lets it go
    ctx.save_for_backward(x if weight.requires_grad else None, weight, scales, scale_scales, offset)
    ctx.width, ctx.has_bias = x.shape[1], bias is not None


def _backward(ctx, grad):
    x, *parts = ctx.saved_tensors
    x = grad.new_empty(0, ctx.width) if x is None else x
    needs = ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[5]
    grads = _linear_backward(grad, x, *parts, *needs)
    grad_x, grad_weight, grad_bias = (g if needed else None for g, needed in zip(grads, needs, strict=True))
    return grad_x, grad_weight, None, None, None, grad_bias


_linear.register_autograd(_backward, setup_context=_setup_context)
