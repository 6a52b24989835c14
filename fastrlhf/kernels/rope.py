"""Rotary position embedding of queries and keys: contract, registration and public functions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.autograd.graph import increment_version

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.checks import FLOATS, check_dtype, check_same_device, check_shape
from fastrlhf.kernels.registration import all_plain, operation


class Rope(NamedTuple):
    """What `rope` returns."""

    query: torch.Tensor
    key: torch.Tensor


def rope(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Rope:
    """Rotate queries and keys by their positions' angles, each of the first R elements of a head with the one R / 2
    further on ("half-split", as in Llama and GPT-NeoX). With a and b the first and second half of R:

    `a' = a cos_a - b sin_a`, `b' = b cos_b + a sin_b`, in float32 and rounded once.

    Source: Su et al., "RoFormer: enhanced transformer with rotary position embedding" (2021), eq. 34.

    Args:
        query: `[..., H, D]`, float, and key: `[..., Hk, D]`, the same dtype: one set of heads a token. Heads and tokens
            may lie apart, as in views of a fused projection.
        cos, sin: `[..., R]`, as a rotary embedding of transformers gives them for the tokens' positions, whatever its
            scaling; float32 or the dtype of query; R even, at most D. Elements of a head after R stay as they are.

    Returns:
        Like query and key, contiguous; differentiable in both (not in cos and sin, which are constants).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit.

    Memory: the outputs; the backward keeps cos and sin alone.
    """
    _check(query, key, cos, sin)
    return Rope(*_rope(query, key, cos, sin, False))


def rope_inplace(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """`rope` in place, for tensors that no gradient goes through (rollouts, a reference): see there.

    Raises:
        RuntimeError: query or key requires a gradient (PyTorch has none for a function that changes two views of one
            tensor, as those of a fused projection are).
        ValueError: query or key is expanded.
    """
    _check(query, key, cos, sin)
    for name, tensor in (("query", query), ("key", key)):
        if tensor.requires_grad:
            raise RuntimeError(f"{name} requires a gradient, which rope_inplace has none for: use rope")
        if any(size > 1 and stride == 0 for size, stride in zip(tensor.shape, tensor.stride(), strict=True)):
            raise ValueError(
                f"{name} is expanded (some of its elements are one), expected each in its own place"
            )
    if all_plain((query, key, cos, sin)) and not (cos.requires_grad or sin.requires_grad):
        # past PyTorch's dispatcher, which counts versions otherwise
        dispatch.call("rope_inplace", query, key, cos, sin)
        increment_version([tensor for tensor in (query, key) if not tensor.is_inference()])
        return
    with torch.no_grad():
        _rope_inplace(query, key, cos, sin)


def _check(query, key, cos, sin):
    check_dtype("query", query, FLOATS)
    if query.dim() < 2:
        raise ValueError(f"query has shape {list(query.shape)}, expected [..., H, D]")
    heads = key.shape[-2] if key.dim() == query.dim() else "Hk"
    check_shape("key", key, (*query.shape[:-2], heads, query.shape[-1]), "[..., Hk, D]")
    check_dtype("key", key, (query.dtype,))
    check_angles(query, cos, sin)
    check_same_device(query=query, key=key, cos=cos, sin=sin)


def check_angles(query: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Raise where cos and sin are not what `rope` takes beside query."""
    rotated = cos.shape[-1] if cos.dim() else 0
    allowed = (torch.float32,) if query.dtype == torch.float32 else (torch.float32, query.dtype)
    for name, tensor in (("cos", cos), ("sin", sin)):
        check_shape(name, tensor, (*query.shape[:-2], rotated), "[..., R]")
        check_dtype(name, tensor, allowed)
    check_dtype("sin", sin, (cos.dtype,))
    if rotated % 2 or rotated > query.shape[-1]:
        raise ValueError(
            f"cos has R = {rotated}, expected an even number of at most the head's {query.shape[-1]} elements"
        )


@dispatch.costs("rope")
def _cost(query, key, cos, sin, transposed) -> Cost:
    return Cost(nbytes(query, key, cos, sin), nbytes(query, key), _flops(query, key, cos))


@dispatch.costs("rope_inplace")
def _inplace_cost(query, key, cos, sin) -> Cost:
    return Cost(nbytes(query, key, cos, sin), nbytes(query, key), _flops(query, key, cos))


def _flops(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor) -> int:
    return 3 * cos.numel() * (query.shape[-2] + key.shape[-2])


@operation("rope")
def _rope(
    query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, transposed: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """`transposed`: by the transposed matrices, as the backward needs (for equal halves the opposite angles')."""
    return dispatch.call("rope", query, key, cos, sin, transposed)


@_rope.register_fake
def _(query, key, cos, sin, transposed):
    return query.new_empty(query.shape), key.new_empty(key.shape)


@torch.library.custom_op("fastrlhf::rope_inplace", mutates_args=("query", "key"))
def _rope_inplace(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    dispatch.call("rope_inplace", query, key, cos, sin)


@_rope_inplace.register_fake
def _(query, key, cos, sin):
    return None


def _setup_context(ctx, inputs, output):
    _, _, cos, sin, ctx.transposed = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx, grad_query, grad_key):
    grads = _rope(grad_query, grad_key, *ctx.saved_tensors, not ctx.transposed)
    needed = [grad if needs else None for grad, needs in zip(grads, ctx.needs_input_grad[:2], strict=True)]
    return (*needed, None, None, None)


_rope.register_autograd(_backward, setup_context=_setup_context)
