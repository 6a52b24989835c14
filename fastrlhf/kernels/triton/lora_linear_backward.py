"""Launcher of the Triton kernels of the gradients of `lora_linear`."""

from __future__ import annotations

from fastrlhf.kernels.triton.lora_linear_down import down
from fastrlhf.kernels.triton.lora_linear_product import LowRank, layer_product
from fastrlhf.kernels.triton.lora_linear_sums import sums_over_rows


def lora_linear_backward(
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
):
    """See `fastrlhf.kernels.lora_linear`. The weight's gradient is PyTorch's own product: nothing there to fuse."""
    grad, x, hidden = grad.contiguous(), x.contiguous(), hidden.contiguous()
    group_offsets, scaling, lora_A = group_offsets.contiguous(), scaling.contiguous(), lora_A.contiguous()
    error = down(grad, lora_B.contiguous(), group_offsets, scaling, transposed=True)
    grad_x = x.new_empty(0)
    if needs_x:
        low_rank = LowRank(error, lora_A, group_offsets, True)
        base = weight, scales, scale_scales, offset
        grad_x = layer_product(grad, base, x.shape[1], transposed=True, low_rank=low_rank)
    return (
        grad_x,
        (grad.T @ x).to(weight.dtype) if needs_weight else weight.new_empty(0),
        sums_over_rows(error, x, group_offsets, lora_A, transposed=False),
        sums_over_rows(hidden, grad, group_offsets, lora_B, transposed=True),
        grad.sum(dim=0) if needs_bias else x.new_empty(0),
    )
