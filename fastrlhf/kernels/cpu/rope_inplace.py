"""Launcher of the C++ kernel of rotary position embedding, in place."""

from __future__ import annotations

from fastrlhf.kernels.cpu.rope import rotate, serves

__all__ = ["rope_inplace", "serves"]


def rope_inplace(query, key, cos, sin):
    """See `fastrlhf.kernels.rope`."""
    rotate(query, key, cos, sin, query, key, False)
