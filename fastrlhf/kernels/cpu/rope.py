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
    heads = as_tokens(query), as_tokens(key)
    outs = [
        given if out is tensor else as_tokens(out)
        for given, tensor, out in zip(heads, (query, key), (query_out, key_out), strict=True)
    ]
    # Held by name until the kernel returns: a copy dies with its last reference.
    cos, sin = as_rows(cos), as_rows(sin)
    native.module("_cpu").rope(
        *(
            (given.data_ptr(), out.data_ptr(), given.shape[1], *given.stride()[:2], *out.stride()[:2])
            for given, out in zip(heads, outs, strict=True)
        ),
        cos.data_ptr(),
        cos.stride(0),
        sin.data_ptr(),
        sin.stride(0),
        cos.shape[-1],
        heads[0].shape[0],
        query.shape[-1],
        transposed,
    )
    for rotated, out in zip(outs, (query_out, key_out), strict=True):
        if rotated.data_ptr() != out.data_ptr():  # strides that no view could follow
            out.copy_(rotated.view(out.shape))
