"""Launcher of the C++ kernel of rotary position embedding."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.cpu.pool import empty
from fastrlhf.kernels.rows import as_rows, as_tokens


def rope(query, key, cos, sin, transposed):
    """See `fastrlhf.kernels.rope`."""
    outputs = empty(query.shape), empty(key.shape)
    rotate(query, key, cos, sin, *outputs, transposed)
    return outputs


def rotate(query, key, cos, sin, query_out, key_out, transposed):
    """Rotate into `query_out` and `key_out`, contiguous tensors or the very ones that are rotated."""
    # Held by name until the kernel returns: a copy dies with its last reference.
    queries, keys, cos, sin = as_tokens(query), as_tokens(key), as_rows(cos), as_rows(sin)
    queries_out = queries if query_out is query else as_tokens(query_out)
    keys_out = keys if key_out is key else as_tokens(key_out)
    native.module("_cpu").rope(
        _addressed(queries, queries_out),
        _addressed(keys, keys_out),
        cos.data_ptr(),
        cos.stride(0),
        sin.data_ptr(),
        sin.stride(0),
        cos.shape[-1],
        queries.shape[0],
        query.shape[-1],
        transposed,
    )
    for rotated, out in ((queries_out, query_out), (keys_out, key_out)):
        if rotated.data_ptr() != out.data_ptr():  # strides that no view could follow
            out.copy_(rotated.view(out.shape))


def _addressed(heads, out):
    """Heads `[T, H, D]` and where they go, in the order of csrc/cpu/rope_binding.h."""
    token, head, _ = heads.stride()
    token_out, head_out, _ = out.stride()
    return heads.data_ptr(), out.data_ptr(), heads.shape[1], token, head, token_out, head_out
