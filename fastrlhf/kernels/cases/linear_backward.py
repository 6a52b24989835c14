"""Cases of `linear_backward`."""

from __future__ import annotations

from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.cases.linear import bases


def cases(dtype):
    """A base of each kind; a quantised one has no gradient, and x has no rows then."""
    grad, x = normal(40, 37, seed=3).to(dtype), normal(40, 70).to(dtype)
    named = {}
    for kind, base in bases(37, 70, dtype).items():
        trained = base[1] is None
        named[kind] = grad, x if trained else x[:0], *base, True, trained, True
    return named
