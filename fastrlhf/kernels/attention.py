"""Causal attention over packed sequences: contract, registration and public functions."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import matrix_inputs
from fastrlhf.kernels.checks import (
    FLOATS,
    check_at_least,
    check_dims,
    check_dtype,
    check_same_device,
    check_shape,
)
from fastrlhf.kernels.registration import operation


class Attention(NamedTuple):
    """What `attention` returns."""

    output: torch.Tensor
    lse: torch.Tensor


def attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    *,
    max_seqlen: int,
    skip: torch.Tensor | None = None,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> Attention:
    """Causal attention of packed sequences, each to itself.

    Position i of a sequence sees its positions `max(skip, i - window + 1)` to i. With `s_ij = scale q_i . k_j`, and
    `s = softcap tanh(s / softcap)` if given: `lse_i = log sum_j exp(s_ij)`, `output_i = sum_j exp(s_ij - lse_i) v_j`.
    Query head h reads key-value head `h // (H / Hk)`. Statistics are float32 whatever the inputs are.

    Source: Dao et al., "FlashAttention: fast and memory-efficient exact attention with IO-awareness" (2022): online
    softmax forward, recomputation backward. Soft-cap as in Gemma 2.

    Args:
        query: `[T, H, D]`, float. Any strides; a last stride of one saves a copy, so views of a fused projection pay.
        key, value: `[T, Hk, D]`, the same dtype; Hk divides H.
        cu_seqlens: `[S + 1]`, int32: sequence i holds the positions from cu_seqlens[i] to cu_seqlens[i + 1], of all T.
            Sequences may be empty.
        max_seqlen: at least the length of the longest sequence (an argument, so that no launcher waits to read it).
        skip: `[S]`, int32: the first skip[i] positions of sequence i are padding; none if None.
        scale: of the scores; `D ** -0.5` if None.
        window: how many positions one sees, itself among them (Mistral's `sliding_window`); all before it if None.
        softcap: bound of the scores (Gemma 2's `attn_logit_softcapping`).

    Returns:
        output, `[T, H, D]` in the dtype of `query`, differentiable in query, key and value; and lse, `[T, H]` float32
        (float64 for float64 inputs), not differentiable. On padding output and gradients are zero, lse is -inf.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or numbers that do not fit.
        ValueError: cu_seqlens does not rise from 0 to T in steps of at most max_seqlen, or skip is negative (on a
            CPU; a GPU is not made to wait for the check: there bounds are clamped to [0, T], and positions that no
            sequence covers hold anything).

    The backward forms the weights of a row from lse, whose rounding gives them a relative error of up to |lse| 2^-24.

    Memory: the outputs. No kernel holds a score matrix, forward or backward; the reference holds one sequence's.
    """
    query, key, value = matrix_inputs(query, key, value)
    check_dims("query", query, 3, "[T, H, D]")
    check_dtype("query", query, FLOATS)
    tokens, heads, width = query.shape
    for name, tensor in (("key", key), ("value", value)):
        check_dims(name, tensor, 3, "[T, Hk, D]")
        check_shape(name, tensor, (tokens, key.shape[1], width), "[T, Hk, D]")
        check_dtype(name, tensor, (query.dtype,))
    check_grouping(heads, key.shape[1])
    check_dims("cu_seqlens", cu_seqlens, 1, "[S + 1]")
    check_dtype("cu_seqlens", cu_seqlens, (torch.int32,))
    check_at_least("the number of entries of cu_seqlens", cu_seqlens.shape[0], 1)
    if skip is not None:
        check_shape("skip", skip, (cu_seqlens.shape[0] - 1,), "[S]")
        check_dtype("skip", skip, (torch.int32,))
    check_same_device(query=query, key=key, value=value, cu_seqlens=cu_seqlens, skip=skip)
    check_at_least("max_seqlen", max_seqlen, 0)
    scale = scale_and_checked_options(width, scale, window, softcap)
    return Attention(*_attention(query, key, value, cu_seqlens, skip, max_seqlen, scale, window, softcap))


def left_padded_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    padding: torch.Tensor | None = None,
    *,
    scale: float | None = None,
    window: int | None = None,
    softcap: float | None = None,
) -> torch.Tensor:
    """`attention` of a padded batch: one sequence a row, all of length T.

    Args:
        query: `[B, T, H, D]`; key, value: `[B, T, Hk, D]`. Rows that follow one another in memory are not copied.
        padding: `[B]`, int32: how many positions of each row's front are padding (`left_padding` of a mask).
        scale, window, softcap: see `attention`.

    Returns:
        `[B, T, H, D]`; zero on padding.

    Raises:
        ValueError, TypeError: as `attention`.
    """
    check_dims("query", query, 4, "[B, T, H, D]")
    rows, columns = query.shape[:2]
    for name, tensor in (("key", key), ("value", value)):
        check_dims(name, tensor, 4, "[B, T, Hk, D]")
        check_shape(name, tensor, (rows, columns, *tensor.shape[2:]), "[B, T, Hk, D]")
    cu_seqlens = columns * torch.arange(rows + 1, dtype=torch.int32, device=query.device)
    packed = (tensor.flatten(0, 1) for tensor in (query, key, value))
    output, _ = attention(
        *packed,
        cu_seqlens,
        max_seqlen=columns,
        skip=padding,
        scale=scale,
        window=window,
        softcap=softcap,
    )
    return output.unflatten(0, (rows, columns))


def left_padding(attention_mask: torch.Tensor) -> torch.Tensor:
    """How many positions of each row's front `attention_mask` leaves out.

    Args:
        attention_mask: `[B, T]`, bool or integer: zeros, then ones.

    Returns:
        `[B]`, int32.

    Raises:
        ValueError: the mask is not two-dimensional, or (seen on a CPU alone) has a zero after a one.
    """
    check_dims("attention_mask", attention_mask, 2, "[B, T]")
    kept = attention_mask != 0
    if kept.device.type == "cpu" and bool((kept[:, :-1] & ~kept[:, 1:]).any()):
        raise ValueError("attention_mask has a zero after a one, expected left padding: zeros, then ones")
    return (~kept).sum(dim=1, dtype=torch.int32)


def check_grouping(heads: int, key_heads: int) -> None:
    """Raise ValueError unless `heads` query heads fall into groups over `key_heads` key-value heads."""
    if key_heads == 0 or heads % key_heads:
        raise ValueError(f"query has {heads} heads and key has {key_heads}, expected a divisor of {heads}")


def scale_and_checked_options(
    width: int, scale: float | None, window: int | None, softcap: float | None
) -> float:
    """The scale, its default filled in; raises ValueError for a width, window or softcap that is not positive."""
    check_at_least("the head dimension", width, 1)
    if window is not None:
        check_at_least("window", window, 1)
    if softcap is not None:
        check_at_least("softcap", softcap, 0, strict=True)
    return width**-0.5 if scale is None else float(scale)


def _check_sequences(
    cu_seqlens: torch.Tensor, skip: torch.Tensor | None, tokens: int, max_seqlen: int
) -> None:
    bounds = cu_seqlens.tolist()
    lengths = [end - start for start, end in pairwise(bounds)]
    if bounds[0] != 0 or bounds[-1] != tokens or min(lengths, default=0) < 0:
        raise ValueError(f"cu_seqlens is {_shortened(bounds)}, expected to rise from 0 to T = {tokens}")
    if max(lengths, default=0) > max_seqlen:
        raise ValueError(f"max_seqlen is {max_seqlen}, and cu_seqlens has a sequence of {max(lengths)}")
    if skip is not None and min(skip.tolist(), default=0) < 0:
        raise ValueError(f"skip is {_shortened(skip.tolist())}, expected no negative number")


def _shortened(numbers: list[int]) -> str:
    return str(numbers) if len(numbers) <= 8 else f"{str(numbers[:7])[:-1]}, ..., {numbers[-1]}]"


@dispatch.costs("attention")
def _cost(query, key, value, cu_seqlens, skip, max_seqlen, scale, window, softcap) -> Cost:
    statistics = query[..., 0].numel() * torch.promote_types(query.dtype, torch.float32).itemsize
    written = nbytes(query) + statistics
    return Cost(
        nbytes(query, key, value, cu_seqlens, skip), written, 4 * _products(query, max_seqlen, window)
    )


@dispatch.costs("attention_backward")
def _backward_cost(
    grad_output, query, key, value, output, lse, cu_seqlens, skip, max_seqlen, scale, window, softcap
) -> Cost:
    """The scores again, and four products for the gradients."""
    read = nbytes(grad_output, query, key, value, output, lse, cu_seqlens, skip)
    return Cost(read, nbytes(query, key, value), 10 * _products(query, max_seqlen, window))


def _products(query: torch.Tensor, max_seqlen: int, window: int | None) -> int:
    """Multiplications of one product of the scores' size, if every sequence is as long as the longest may be (what
    they really are is on the device)."""
    seen = max_seqlen / 2 if window is None else min(window, max_seqlen / 2)
    return int(query.numel() * seen)


@operation("attention")
def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    cu_seqlens: torch.Tensor,
    skip: torch.Tensor | None,
    max_seqlen: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    if cu_seqlens.device.type == "cpu":
        _check_sequences(cu_seqlens, skip, query.shape[0], max_seqlen)
    return dispatch.call("attention", query, key, value, cu_seqlens, skip, max_seqlen, scale, window, softcap)


@_attention.register_fake
def _(query, key, value, cu_seqlens, skip, max_seqlen, scale, window, softcap):
    lse = query.new_empty(query.shape[:2], dtype=torch.promote_types(query.dtype, torch.float32))
    return query.new_empty(query.shape), lse


@operation("attention_backward")
def _attention_backward(
    grad_output: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    lse: torch.Tensor,
    cu_seqlens: torch.Tensor,
    skip: torch.Tensor | None,
    max_seqlen: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of query, key and value. With p_ij = exp(s_ij - lse_i) and g the gradient of the output:

    `dv_j = sum_i p_ij g_i`, `ds_ij = p_ij (g_i . v_j - g_i . output_i)`, `dq_i = scale sum_j ds_ij k_j`,
    `dk_j = scale sum_i ds_ij q_i`; with a soft-cap ds_ij is multiplied by `1 - (s_ij / softcap)^2` besides.
    """
    return dispatch.call(
        "attention_backward",
        grad_output,
        query,
        key,
        value,
        output,
        lse,
        cu_seqlens,
        skip,
        max_seqlen,
        scale,
        window,
        softcap,
    )


@_attention_backward.register_fake
def _(grad_output, query, key, value, output, lse, cu_seqlens, skip, max_seqlen, scale, window, softcap):
    return tuple(tensor.new_empty(tensor.shape) for tensor in (query, key, value))


def _setup_context(ctx, inputs, output):
    query, key, value, cu_seqlens, skip, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(query, key, value, *output, cu_seqlens, skip)


def _backward(ctx, grad_output, _):
    grads = _attention_backward(grad_output, *ctx.saved_tensors, *ctx.options)
    return (*grads, *[None] * 6)


_attention.register_autograd(_backward, setup_context=_setup_context)
