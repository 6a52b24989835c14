"""Rotary position embedding in place."""

from __future__ import annotations

from fastrlhf.kernels.reference.rope import rotated


def rope_inplace(query, key, cos, sin):
    """See `fastrlhf.kernels.rope`."""
    for heads in (query, key):
        heads.copy_(rotated(heads, cos, sin, transposed=False))
