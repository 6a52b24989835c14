"""Launcher of the C++ kernel of rotary position embedding, in place."""

from __future__ import annotations

from fastrlhf.kernels.cpu.rope import rotate


def rope_inplace(query, key, cos, sin):
    """See `fastrlhf.kernels.rope`."""
    rotate(query, key, cos, sin, query, key, False)
