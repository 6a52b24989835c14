"""Rotation of a decoding step's queries and keys, and its keys and values into a cache: one program a token."""

from __future__ import annotations

import triton
import triton.language as tl

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels.rows import as_rows, as_tokens
from fastrlhf.kernels.triton.rope import CONFIGS, choose_config, rotate_heads  # noqa: F401 - read by tests


def rope_cache(query, key, value, cos, sin, slots, key_cache, value_cache):
    """See `fastrlhf.kernels.rope_cache`."""
    out = query.new_empty(query.shape)
    query, key, value = as_tokens(query), as_tokens(key), as_tokens(value)
    tokens, query_heads, width = query.shape
    key_heads = key.shape[1]
    cos, sin = (None, None) if cos is None else (as_rows(cos), as_rows(sin))
    half = 0 if cos is None else cos.shape[-1] // 2
    heads = query, key, value, key_cache, value_cache
    launch_triton(
        rope_cache_kernel,
        (tokens,),
        query.device,
        *heads,
        out,
        cos,
        sin,
        slots,
        key_cache.shape[0],
        *(stride for tensor in heads for stride in tensor.stride()[:2]),
        0 if cos is None else cos.stride(0),
        0 if cos is None else sin.stride(0),
        slots.stride(0),
        QUERY_HEADS=query_heads,
        KEY_HEADS=key_heads,
        WIDTH=width,
        HALF=half,
        QUERY_BLOCK=triton.next_power_of_2(max(1, query_heads)),
        KEY_BLOCK=triton.next_power_of_2(max(1, key_heads)),
        HALF_BLOCK=triton.next_power_of_2(max(1, half)),
        WIDTH_BLOCK=triton.next_power_of_2(max(1, width)),
        REST_BLOCK=triton.next_power_of_2(width - 2 * half) if width > 2 * half else 0,
        **choose_config(query_heads * width),
    )
    return out


@triton.jit(do_not_specialize=["cache_slots"])
def rope_cache_kernel(
    query,
    key,
    value,
    key_cache,
    value_cache,
    out,
    cos,
    sin,
    slots,
    cache_slots,
    query_token_stride,
    query_head_stride,
    key_token_stride,
    key_head_stride,
    value_token_stride,
    value_head_stride,
    key_cache_slot_stride,
    key_cache_head_stride,
    value_cache_slot_stride,
    value_cache_head_stride,
    cos_stride,
    sin_stride,
    slots_stride,
    QUERY_HEADS: tl.constexpr,
    KEY_HEADS: tl.constexpr,
    WIDTH: tl.constexpr,
    HALF: tl.constexpr,
    QUERY_BLOCK: tl.constexpr,
    KEY_BLOCK: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    WIDTH_BLOCK: tl.constexpr,
    REST_BLOCK: tl.constexpr,
):
    """Grid: one program a token. Without rotary embedding cos and sin are None and HALF is 0."""
    token = tl.program_id(0).to(tl.int64)
    cos_a, cos_b, sin_a, sin_b = 1.0, 1.0, 0.0, 0.0
    if HALF > 0:
        angle = tl.arange(0, HALF_BLOCK)[None, :]
        rotated = angle < HALF
        cosines, sines = cos + token * cos_stride + angle, sin + token * sin_stride + angle
        cos_a = tl.load(cosines, mask=rotated, other=0.0).to(tl.float32)
        cos_b = tl.load(cosines + HALF, mask=rotated, other=0.0).to(tl.float32)
        sin_a = tl.load(sines, mask=rotated, other=0.0).to(tl.float32)
        sin_b = tl.load(sines + HALF, mask=rotated, other=0.0).to(tl.float32)
    rotate_heads(
        query + token * query_token_stride,
        out + token * QUERY_HEADS * WIDTH,
        query_head_stride,
        WIDTH,
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
    slot = tl.load(slots + token * slots_stride)
    if (slot >= 0) & (slot < cache_slots):
        rotate_heads(
            key + token * key_token_stride,
            key_cache + slot * key_cache_slot_stride,
            key_head_stride,
            key_cache_head_stride,
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
        head, column = tl.arange(0, KEY_BLOCK)[:, None], tl.arange(0, WIDTH_BLOCK)[None, :]
        inside = (head < KEY_HEADS) & (column < WIDTH)
        of_value = value + token * value_token_stride + head * value_head_stride + column
        to = value_cache + slot * value_cache_slot_stride + head * value_cache_head_stride + column
        tl.store(to, tl.load(of_value, mask=inside, other=0.0), mask=inside)
