"""Rotation of a decoding step's queries and keys, and its keys and values into a cache."""

from __future__ import annotations

import torch

from fastrlhf.kernels.reference.rope import rotated


def rope_cache(query, key, value, cos, sin, slots, key_cache, value_cache):
    """See `fastrlhf.kernels.rope_cache`."""
    query = query.clone(memory_format=torch.contiguous_format)
    if cos is not None:
        query, key = rotated(query, cos, sin, False), rotated(key, cos, sin, False)
    write(key, value, slots, key_cache, value_cache)
    return query


def write(key, value, slots, key_cache, value_cache):
    """Keys and values into their slots of the caches."""
    if not len(key_cache):
        return
    # a slot that the caches do not have: its token writes back what is there
    has = ((slots >= 0) & (slots < len(key_cache)))[:, None, None]
    slots = slots.clamp(0, len(key_cache) - 1)
    for cache, new in ((key_cache, key), (value_cache, value)):
        cache.index_copy_(0, slots, torch.where(has, new, cache[slots]))
