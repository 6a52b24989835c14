"""PyTorch's `scaled_dot_product_attention` on sim:0: one kernel each way, as on a GPU.

PyTorch offers its fused kernels to the devices that it knows, and computes attention on others with products, masks and
a softmax of their own, which hold all scores at once. With dropout, or a mask that learns, it does so here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

NAMESPACE = "sim"
_OPTIONS = "Tensor? mask, bool causal, float? scale, bool grouped"


def register() -> list[torch.library.Library]:
    """Take the operation for sim:0; the registrations live as long as what is returned."""
    kernels = torch.library.Library(NAMESPACE, "DEF")
    kernels.define(f"attention(Tensor query, Tensor key, Tensor value, {_OPTIONS}) -> (Tensor, Tensor)")
    kernels.define(
        "attention_backward(Tensor grad, Tensor query, Tensor key, Tensor value, Tensor output, Tensor logsumexp, "
        f"{_OPTIONS}) -> (Tensor, Tensor, Tensor)"
    )
    for place in ("CPU", "Meta"):
        kernels.impl("attention", _attention, place)
        kernels.impl("attention_backward", _attention_backward, place)
    pytorch = torch.library.Library("aten", "IMPL")
    pytorch.impl("scaled_dot_product_attention", _scaled_dot_product_attention, "AutogradPrivateUse1")
    return [kernels, pytorch]


def flops(name: str, *args: Any) -> int:
    """Arithmetic of `sim::attention` (two products of the scores' size) or its backward (five), masked or not."""
    backward = name == f"{NAMESPACE}::attention_backward"
    query, key, value = args[backward : backward + 3]
    scores = query[..., 0].numel() * key.shape[-2]
    to_query, to_value = (3, 2) if backward else (1, 1)
    return 2 * scores * (to_query * query.shape[-1] + to_value * value.shape[-1])


def _scaled_dot_product_attention(
    query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, *, scale=None, enable_gqa=False
):
    if dropout_p > 0 or (attn_mask is not None and attn_mask.requires_grad):
        return torch.ops.aten._scaled_dot_product_attention_math(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )[0]
    return _Attention.apply(query, key, value, attn_mask, is_causal, scale, enable_gqa)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query, key, value, mask, *options):
        output, logsumexp = torch.ops.sim.attention(query, key, value, mask, *options)
        ctx.save_for_backward(query, key, value, output, logsumexp, mask)
        ctx.options = options
        return output

    @staticmethod
    def backward(ctx: Any, grad):
        *saved, mask = ctx.saved_tensors
        grads = torch.ops.sim.attention_backward(grad, *saved, mask, *ctx.options)
        return (*grads, None, None, None, None)


def _attention(query, key, value, mask, causal, scale, grouped):
    """The output, and room for the statistics that a fused kernel keeps."""
    output = scaled_dot_product_attention(
        query, key, value, mask, 0.0, causal, scale=scale, enable_gqa=grouped
    )
    return output, query.new_zeros(query.shape[:-1], dtype=torch.float32)


def _attention_backward(grad, query, key, value, output, logsumexp, mask, causal, scale, grouped):
    """By the chain rule, in plain operations: autograd does not reach in here."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    groups = query.shape[-3] // key.shape[-3] if grouped else 1
    keys, values = (tensor.repeat_interleave(groups, dim=-3) for tensor in (key, value))
    scores = scale * query @ keys.mT
    if causal:
        mask = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    # a row that sees nothing attends to nothing
    weights = scores.softmax(-1).nan_to_num(0.0)
    grad_weights = grad @ values.mT
    grad_scores = scale * weights * (grad_weights - (grad * output).sum(-1, keepdim=True))
    grads = grad_scores @ keys, grad_scores.mT @ query, weights.mT @ grad
    query_grad, *others = grads
    shared = (one.unflatten(-3, (-1, groups)).sum(-3) for one in others)
    return (
        query_grad.to(query.dtype),
        *(one.to(tensor.dtype) for one, tensor in zip(shared, (key, value), strict=True)),
    )
