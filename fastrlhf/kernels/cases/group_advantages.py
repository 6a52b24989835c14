"""Cases of `group_advantages`."""

from __future__ import annotations

import torch

from fastrlhf.kernels.cases import normal


def cases(dtype):
    """Groups in order and by id, one of them longer than a warp, with rows left out; and no row."""
    scores, mask = normal(72, seed=1).to(dtype) + 3, normal(72, seed=2) > -1
    groups = (
        torch.arange(72)
        .remainder(7)
        .clamp(max=4)[torch.randperm(72, generator=torch.Generator().manual_seed(3))]
    )
    return {
        "grpo in order": (scores, None, None, 8, "grpo", 1e-4),
        "rloo by id": (scores, mask, groups, 1, "rloo", 1e-4),
        "dr_grpo in order": (scores, mask, None, 36, "dr_grpo", 1e-4),
        "no row": (scores[:0], None, groups[:0], 1, "grpo", 1e-4),
    }
