"""Launcher of the C++ kernel of attention over a paged cache."""

from __future__ import annotations

from fastrlhf.kernels import native
from fastrlhf.kernels.decode_attention_arguments import decode_attention_arguments


def decode_attention(*args):
    """See `fastrlhf.kernels.decode_attention`; arguments as `reference`. The same bits for every number of threads.

    An index out of range gives NaN here, as on a GPU; the registered operation raises before.
    """
    given = decode_attention_arguments(*args)
    native.module("_cpu").decode_attention(*given.arguments, given.output.data_ptr())
    return given.output
