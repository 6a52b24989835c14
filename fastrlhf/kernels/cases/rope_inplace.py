"""Cases of `rope_inplace`."""

from __future__ import annotations

from fastrlhf.kernels.cases import rope


def cases(dtype):
    """Those of `rope` that turn forward."""
    return {name: args[:4] for name, args in rope.cases(dtype).items() if not args[4]}
