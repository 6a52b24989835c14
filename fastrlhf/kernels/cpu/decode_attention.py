"""Launcher of the C++ kernel of attention over a paged cache."""

from __future__ import annotations

from fastrlhf.kernels import native


def decode_attention(query, key_cache, value_cache, block_table, lengths, scale, window, softcap):
    """See `fastrlhf.kernels.decode_attention`. Bit for bit the same for every number of threads.

    An index out of range gives NaN here, as on a GPU; the registered operation raises before.
    """
    # Held by name until the kernel returns: a contiguous copy dies with its last reference.
    query, block_table, lengths = query.contiguous(), block_table.contiguous(), lengths.contiguous()
    output = query.new_empty(query.shape)
    native.module("_cpu").decode_attention(
        query.data_ptr(),
        [[cache.data_ptr(), *cache.stride()[:3]] for cache in (key_cache, value_cache)],
        block_table.data_ptr(),
        lengths.data_ptr(),
        [
            *(query.shape[0], query.shape[1], key_cache.shape[2], query.shape[2]),
            *(key_cache.shape[0], key_cache.shape[1], block_table.shape[1]),
        ],
        scale,
        softcap or 0.0,
        window or 0,
        output.data_ptr(),
    )
    return output
