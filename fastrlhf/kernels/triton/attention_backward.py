"""Gradients of attention: one kernel for the queries', one for the keys' and values', and no atomics."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.rows import with_dense_rows
from fastrlhf.kernels.triton import attention_backward_key, attention_backward_query
from fastrlhf.kernels.triton.attention_tile import (
    padded_width,
    score_factors,
    serves,  # noqa: F401 - read by dispatch
)

DELTA_ROWS = 32


def attention_backward(
    grad_output, query, key, value, output, lse, cu_seqlens, skip, max_seqlen, scale, window, softcap
):
    """See `fastrlhf.kernels.attention`. The scores are computed twice, so that every sum has one program, and the same
    input gives the same bits."""
    grad_output, query, key, value = map(with_dense_rows, (grad_output, query, key, value))
    output, lse, cu_seqlens = output.contiguous(), lse.contiguous(), cu_seqlens.contiguous()
    skip = skip if skip is None else skip.contiguous()
    tokens, heads, width = query.shape
    # the kernels leave padding as it is
    allocate = torch.Tensor.new_empty if skip is None else torch.Tensor.new_zeros
    grads = tuple(allocate(tensor, tensor.shape) for tensor in (query, key, value))
    delta = query.new_empty((tokens, heads), dtype=torch.float32)
    launch_triton(
        attention_delta_kernel,
        (triton.cdiv(tokens, DELTA_ROWS), heads),
        query.device,
        *(grad_output, output, delta, *grad_output.stride()[:2], tokens),
        WIDTH=width,
        COLUMNS=padded_width(width),
        ROWS=DELTA_ROWS,
        num_warps=4,
    )
    windowed = window is not None and window < max_seqlen
    for module, kernel, results, programs_of in (
        (attention_backward_query, attention_backward_query.attention_query_kernel, grads[:1], heads),
        (attention_backward_key, attention_backward_key.attention_key_kernel, grads[1:], key.shape[1]),
    ):
        config = module.choose_config(width, query.dtype)
        blocks = triton.cdiv(max_seqlen, config[module.BLOCK])
        launch_triton(
            kernel,
            (blocks * (cu_seqlens.shape[0] - 1), programs_of),
            query.device,
            *(query, key, value, grad_output, lse, delta, *results),
            *(cu_seqlens, cu_seqlens if skip is None else skip),
            *(*query.stride()[:2], *key.stride()[:2], *value.stride()[:2], *grad_output.stride()[:2]),
            *(tokens, blocks, scale, *score_factors(scale, softcap), window if windowed else 0),
            GROUP=heads // key.shape[1],
            WIDTH=width,
            COLUMNS=padded_width(width),
            HAS_SKIP=skip is not None,
            HAS_WINDOW=windowed,
            HAS_SOFTCAP=softcap is not None,
            **config,
        )
    return grads


@triton.jit(do_not_specialize=["tokens"])
def attention_delta_kernel(
    grad_output,
    output,
    delta,
    grad_stride,
    grad_head_stride,
    tokens,
    WIDTH: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """What a row's weights times the gradients of the weights add up to: `output . grad_output`.

    Grid: (blocks of tokens, query heads).
    """
    head, heads = tl.program_id(1).to(tl.int64), tl.num_programs(1)
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.arange(0, COLUMNS)
    inside = (rows < tokens)[:, None] & (columns < WIDTH)[None, :]
    grads = tl.load(
        grad_output + rows[:, None] * grad_stride + head * grad_head_stride + columns[None, :],
        mask=inside,
        other=0.0,
    )
    outputs = tl.load(
        output + (rows[:, None] * heads + head) * WIDTH + columns[None, :], mask=inside, other=0.0
    )
    sums = tl.sum(grads.to(tl.float32) * outputs.to(tl.float32), axis=1)
    tl.store(delta + rows * heads + head, sums, mask=rows < tokens)
