"""Cases of the backward of `glu`."""

from __future__ import annotations

from fastrlhf.kernels.cases import glu, normal


def cases(dtype):
    """Those of the forward."""
    return {
        name: (normal(*args[0].shape, seed=3).to(dtype), *args) for name, args in glu.cases(dtype).items()
    }
