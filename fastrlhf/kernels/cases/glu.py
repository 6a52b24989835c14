"""Cases of `glu`."""

from __future__ import annotations

from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.glu import ACTIVATIONS


def cases(dtype):
    """Every activation, on gates near zero and far from it; and no row."""
    gate, up = normal(5, 67, seed=1, scale=3.0).to(dtype), normal(5, 67, seed=2).to(dtype)
    gate[0] *= 20
    made = {activation: (gate, up, activation) for activation in ACTIVATIONS}
    return made | {"no row": (gate[:0], up[:0], "silu")}
