"""Rotation by the C++ kernel, to the bits of the compiled decoding step, and PyTorch's copy into the caches."""

from __future__ import annotations

from fastrlhf.kernels.cpu.rope import rope
from fastrlhf.kernels.reference import rope_cache as reference


def rope_cache(query, key, value, cos, sin, slots, key_cache, value_cache):
    """See `fastrlhf.kernels.rope_cache`."""
    if cos is not None:
        query, key = rope(query, key, cos, sin, False)
        reference.write(key, value, slots, key_cache, value_cache)
        return query
    return reference.rope_cache(query, key, value, None, None, slots, key_cache, value_cache)
