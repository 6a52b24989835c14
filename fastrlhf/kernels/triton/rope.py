"""Rotary position embedding: one program a token, whose angles serve all its heads."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.rows import as_rows, as_tokens

CONFIGS = [
    {"num_warps": 1},
    {"num_warps": 2},
    {"num_warps": 4},
    {"num_warps": 8},
]


def choose_config(elements: int) -> dict:
    """By the elements of a token's queries: sixteen or more a thread, as loads of 16 bytes from both halves need."""
    return CONFIGS[0 if elements <= 512 else 1 if elements <= 1024 else 2 if elements <= 4096 else 3]


def rope(query, key, cos, sin, transposed):
    """See `fastrlhf.kernels.rope`."""
    outputs = query.new_empty(query.shape), key.new_empty(key.shape)
    rotate(query, key, cos, sin, *outputs, transposed)
    return outputs


def rotate(query, key, cos, sin, query_out, key_out, transposed):
    """Rotate into `query_out` and `key_out`, contiguous tensors or the very ones that are rotated."""
    heads = as_tokens(query), as_tokens(key)
    outs = [
        given if out is tensor else as_tokens(out)
        for given, tensor, out in zip(heads, (query, key), (query_out, key_out), strict=True)
    ]
    cos, sin = as_rows(cos), as_rows(sin)
    tokens, query_heads, width = heads[0].shape
    half = cos.shape[-1] // 2
    launch_triton(
        rope_kernel,
        (tokens,),
        query.device,
        *(tensor for pair in zip(heads, outs, strict=True) for tensor in pair),
        cos,
        sin,
        *(stride for pair in zip(heads, outs, strict=True) for each in pair for stride in each.stride()[:2]),
        cos.stride(0),
        sin.stride(0),
        TRANSPOSED=transposed,
        QUERY_HEADS=query_heads,
        KEY_HEADS=heads[1].shape[1],
        WIDTH=width,
        HALF=half,
        QUERY_BLOCK=triton.next_power_of_2(max(1, query_heads)),
        KEY_BLOCK=triton.next_power_of_2(max(1, heads[1].shape[1])),
        HALF_BLOCK=triton.next_power_of_2(max(1, half)),
        # nothing is copied in place
        REST_BLOCK=triton.next_power_of_2(width - 2 * half)
        if query_out is not query and width > 2 * half
        else 0,
        **choose_config(query_heads * width),
    )
    for rotated, out in zip(outs, (query_out, key_out), strict=True):
        if rotated.data_ptr() != out.data_ptr():  # strides that no view could follow
            out.copy_(rotated.view(out.shape))


@triton.jit
def rotate_heads(
    source,
    target,
    source_stride,
    target_stride,
    cos_a,
    cos_b,
    sin_a,
    sin_b,
    HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    HEADS_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """Rotate one token's heads, `stride` apart, from `source` to `target`, which may be `source`."""
    head, column = tl.arange(0, HEADS_BLOCK)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < HEADS) & (column < HALF)
    at, to = source + head * source_stride + column, target + head * target_stride + column
    a = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(to, (a * cos_a - b * sin_a).to(target.dtype.element_ty), mask=inside)
    tl.store(to + HALF, (b * cos_b + a * sin_b).to(target.dtype.element_ty), mask=inside)
    if REST_BLOCK > 0:
        column = 2 * HALF + tl.arange(0, REST_BLOCK)[None, :]
        inside = (head < HEADS) & (column < WIDTH)
        rest = tl.load(source + head * source_stride + column, mask=inside, other=0.0)
        tl.store(target + head * target_stride + column, rest, mask=inside)


@triton.jit
def rope_kernel(
    query,
    query_out,
    key,
    key_out,
    cos,
    sin,
    query_token_stride,
    query_head_stride,
    query_out_token_stride,
    query_out_head_stride,
    key_token_stride,
    key_head_stride,
    key_out_token_stride,
    key_out_head_stride,
    cos_stride,
    sin_stride,
    TRANSPOSED: tl.constexpr,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """Grid: one program a token."""
    token = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, HALF_BLOCK)[None, :]
    inside = column < HALF
    cosines, sines = cos + token * cos_stride + column, sin + token * sin_stride + column
    cos_a = tl.load(cosines, mask=inside, other=0.0).to(tl.float32)
    cos_b = tl.load(cosines + HALF, mask=inside, other=0.0).to(tl.float32)
    sin_a = tl.load(sines, mask=inside, other=0.0).to(tl.float32)
    sin_b = tl.load(sines + HALF, mask=inside, other=0.0).to(tl.float32)
    if TRANSPOSED:
        sin_a, sin_b = -sin_b, -sin_a
    rotate_heads(
        query + token * query_token_stride,
        query_out + token * query_out_token_stride,
        query_head_stride,
        query_out_head_stride,
        cos_a,
        cos_b,
        sin_a,
        sin_b,
        QUERY_HEADS,
        WIDTH,
        HALF,
        QUERY_BLOCK,
        HALF_BLOCK,
        REST_BLOCK,
    )
    rotate_heads(
        key + token * key_token_stride,
        key_out + token * key_out_token_stride,
        key_head_stride,
        key_out_head_stride,
        cos_a,
        cos_b,
        sin_a,
        sin_b,
        KEY_HEADS,
        WIDTH,
        HALF,
        KEY_BLOCK,
        HALF_BLOCK,
        REST_BLOCK,
    )
