"""A layer's matrix product with low-rank adapters: contract, registration and public function."""

from __future__ import annotations

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import matrix_inputs
from fastrlhf.kernels.base_weight import BaseWeight, check_base
from fastrlhf.kernels.checks import FLOATS, check_dims, check_dtype, check_same_device, check_shape
from fastrlhf.kernels.registration import operation


def lora_linear(
    x: torch.Tensor,
    weight: BaseWeight,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    group_offsets: torch.Tensor,
    scaling: torch.Tensor,
    bias: torch.Tensor | None = None,
) -> torch.Tensor:
    """`x W^T + scaling_g (x A_g^T) B_g^T + bias`, each row by the adapter of its group, all over one base.

    Source: Hu et al., "LoRA: low-rank adaptation of large language models" (2021), eq. 3; with a base in 4 bits,
    Dettmers et al., "QLoRA" (2023), eq. 5.

    Args:
        x: `[N, in]`, float, the rows of a group side by side.
        weight: `[out, in]`, any float dtype (converted to that of x), or a `QuantizedWeight`.
        lora_A, lora_B: `[G, r, in]` and `[G, out, r]`, both in the dtype of x or both float32. The low-rank part is
            computed in their dtype.
        group_offsets: int32 `[G + 1]`, not falling: adapter g has the rows from `group_offsets[g]` up to
            `group_offsets[g + 1]`. Rows before the first and after the last have the base alone.
        scaling: float32 `[G]`: alpha / r of each adapter.
        bias: `[out]`, the dtype of x.

    Returns:
        `[N, out]` in the dtype of x, differentiable in x, lora_A, lora_B, a float weight and bias (not in scaling).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit; offsets that fall or leave [0, N] (on a CPU;
            a GPU is not made to wait for the check, and the whole result is NaN).

    Memory: `[N, r]` besides the result, kept for the backward. A quantised weight is never held in full, and a weight
    that is not float32 is never converted in full, but for the reference, which does both.
    """
    x, lora_A, lora_B, bias = matrix_inputs(x, lora_A, lora_B, bias)
    check_dims("x", x, 2, "[N, in]")
    check_dtype("x", x, FLOATS)
    width = x.shape[1]
    parts = check_base(weight, width)
    out = parts[0].shape[0]
    check_dims("lora_A", lora_A, 3, "[G, r, in]")
    groups, rank = lora_A.shape[:2]
    check_shape("lora_A", lora_A, (groups, rank, width), "[G, r, in]")
    check_dtype("lora_A", lora_A, (x.dtype, torch.promote_types(x.dtype, torch.float32)))
    check_shape("lora_B", lora_B, (groups, out, rank), "[G, out, r]")
    check_dtype("lora_B", lora_B, (lora_A.dtype,))
    check_shape("group_offsets", group_offsets, (groups + 1,), "[G + 1]")
    check_dtype("group_offsets", group_offsets, (torch.int32,))
    check_shape("scaling", scaling, (groups,), "[G]")
    check_dtype("scaling", scaling, (torch.float32,))
    if bias is not None:
        check_shape("bias", bias, (out,), "[out]")
        check_dtype("bias", bias, (x.dtype,))
    check_same_device(
        x=x,
        weight=parts[0],
        lora_A=lora_A,
        lora_B=lora_B,
        group_offsets=group_offsets,
        scaling=scaling,
        bias=bias,
    )
    return _lora_linear(x, *parts, lora_A, lora_B, group_offsets, scaling, bias)[0]


@dispatch.costs("lora_linear")
def _cost(x, weight, scales, scale_scales, offset, lora_A, lora_B, group_offsets, scaling, bias) -> Cost:
    (rows, width), out, rank = x.shape, weight.shape[0], lora_A.shape[1]
    base = weight, scales, scale_scales, offset
    read = nbytes(x, *base, lora_A, lora_B, group_offsets, scaling, bias)
    written = rows * (out * x.element_size() + rank * lora_A.element_size())
    return Cost(read, written, 2 * rows * (out * width + rank * (out + width)))


@dispatch.costs("lora_linear_backward")
def _backward_cost(
    grad,
    x,
    hidden,
    weight,
    scales,
    scale_scales,
    offset,
    lora_A,
    lora_B,
    group_offsets,
    scaling,
    needs_x,
    needs_weight,
    needs_bias,
) -> Cost:
    (rows, width), out, rank = x.shape, weight.shape[0], lora_A.shape[1]
    base = weight, scales, scale_scales, offset
    read = nbytes(grad, x, hidden, *base, lora_A, lora_B, group_offsets, scaling)
    written = nbytes(lora_A, lora_B) + needs_x * nbytes(x) + needs_weight * nbytes(weight)
    low_rank = rank * (2 * out + width * (1 + needs_x))
    flops = 2 * rows * (out * width * (needs_x + needs_weight) + low_rank) + needs_bias * rows * out
    return Cost(read, written + needs_bias * out * grad.element_size(), flops)


@operation("lora_linear")
def _lora_linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    scale_scales: torch.Tensor | None,
    offset: torch.Tensor | None,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    group_offsets: torch.Tensor,
    scaling: torch.Tensor,
    bias: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The result, and `scaling_g x A_g^T` `[N, r]` in the adapters' dtype, zero in rows without a group."""
    if x.device.type == "cpu":
        offsets = group_offsets.tolist()
        if offsets != sorted(offsets) or offsets[0] < 0 or offsets[-1] > x.shape[0]:
            raise ValueError(
                f"group_offsets is {offsets}, expected to rise within [0, {x.shape[0]}] (rows of x)"
            )
    base = weight, scales, scale_scales, offset
    return dispatch.call("lora_linear", x, *base, lora_A, lora_B, group_offsets, scaling, bias)


@_lora_linear.register_fake
def _(x, weight, scales, scale_scales, offset, lora_A, lora_B, group_offsets, scaling, bias):
    rows = x.shape[0]
    return x.new_empty(rows, weight.shape[0]), lora_A.new_empty(rows, lora_A.shape[1])


@operation("lora_linear_backward")
def _lora_linear_backward(
    grad: torch.Tensor,
    x: torch.Tensor,
    hidden: torch.Tensor,
    weight: torch.Tensor,
    scales: torch.Tensor | None,
    scale_scales: torch.Tensor | None,
    offset: torch.Tensor | None,
    lora_A: torch.Tensor,
    lora_B: torch.Tensor,
    group_offsets: torch.Tensor,
    scaling: torch.Tensor,
    needs_x: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of x, weight, lora_A, lora_B and bias; those of x, weight and bias empty unless needed."""
    base = weight, scales, scale_scales, offset
    adapters = lora_A, lora_B, group_offsets, scaling
    needs = needs_x, needs_weight, needs_bias
    return dispatch.call("lora_linear_backward", grad, x, hidden, *base, *adapters, *needs)


@_lora_linear_backward.register_fake
def _(grad, x, hidden, weight, scales, scale_scales, offset, lora_A, lora_B, group_offsets, scaling, *needs):
    needs_x, needs_weight, needs_bias = needs
    return (
        x.new_empty(x.shape if needs_x else 0),
        weight.new_empty(weight.shape if needs_weight else 0),
        lora_A.new_empty(lora_A.shape),
        lora_B.new_empty(lora_B.shape),
        x.new_empty(weight.shape[0] if needs_bias else 0),
    )


def _setup_context(ctx, inputs, output):
    x, weight, scales, scale_scales, offset, lora_A, lora_B, group_offsets, scaling, _ = inputs
    hidden = output[1]
    ctx.mark_non_differentiable(hidden)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(
        x, hidden, weight, scales, scale_scales, offset, lora_A, lora_B, group_offsets, scaling
    )


def _backward(ctx, grad, _):
    if grad is None:
        return (None,) * 10
    needed = ctx.needs_input_grad
    needs = needed[0], needed[1], needed[9]
    grad_x, grad_weight, grad_A, grad_B, grad_bias = _lora_linear_backward(grad, *ctx.saved_tensors, *needs)
    return (
        grad_x if needs[0] else None,
        grad_weight if needs[1] else None,
        None,
        None,
        None,
        grad_A if needed[5] else None,
        grad_B if needed[6] else None,
        None,
        None,
        grad_bias if needs[2] else None,
    )


_lora_linear.register_autograd(_backward, setup_context=_setup_context)
