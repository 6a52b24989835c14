"""Cases of the backward of `attention`."""

from __future__ import annotations

from fastrlhf.kernels.cases import attention, normal
from fastrlhf.kernels.reference.attention import attention as forward


def cases(dtype):
    """Those of the forward, with what the reference made of them."""
    made = {}
    for name, args in attention.cases(dtype).items():
        gradient = normal(*args[0].shape, seed=4).to(dtype)
        made[name] = (gradient, *args[:3], *forward(*args), *args[3:])
    return made
