"""Cases of the backward of `attention`."""

from __future__ import annotations

from fastrlhf.kernels.cases import attention, normal
from fastrlhf.kernels.reference.attention import attention as forward


def cases(dtype):
    """Those of the forward, with its reference's results."""
    made = {}
    for name, args in attention.cases(dtype).items():
        query, *rest = args
        made[name] = (normal(*query.shape, seed=9).to(dtype), *args[:3], *forward(*args), *rest[2:])
    return made
