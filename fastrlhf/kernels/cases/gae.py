"""Cases of `gae`."""

from __future__ import annotations

from fastrlhf.kernels.cases import normal, ragged


def cases(dtype):
    """Rows longer than a warp, and none."""
    rewards, values, mask = normal(3, 37, seed=1).to(dtype), normal(3, 37, seed=2).to(dtype), ragged(3, 37)
    return {
        "ragged rows": (rewards, values, mask, mask.clone(), 0.99, 0.95),
        "moments over a part": (rewards, values, mask, ragged(3, 37, seed=5), 1.0, 0.9),
        "no row": (rewards[:0], values[:0], mask[:0], mask[:0], 1.0, 0.95),
    }
