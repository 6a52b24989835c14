"""Launcher of the C++ kernel that samples the next token."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.sample_arguments import sample_call


def sample(*args):
    """See `fastrlhf.kernels.sample`; arguments as `reference`. The same bits for every number of threads."""
    call = sample_call(*args)
    native.module("_cpu").sample(*call.arguments)
    return call.outputs
