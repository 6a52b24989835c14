"""Rotation by the C++ kernel, to the bits of the compiled decoding step, and PyTorch's copy into the caches."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cpu.rope import rope
from fastrlhf.kernels.reference.rope_cache import write


def rope_cache(query, key, value, cos, sin, slots, key_cache, value_cache):
    """See `fastrlhf.kernels.rope_cache`."""
    if cos is None:
        query = query.clone(memory_format=torch.contiguous_format)
    else:
        query, key = rope(query, key, cos, sin, False)
    write(key, value, slots, key_cache, value_cache)
    return query
