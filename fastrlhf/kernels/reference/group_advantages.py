"""Group-relative and leave-one-out advantages, as the equations read."""

from __future__ import annotations

import torch

from fastrlhf.kernels.masked import masked_moments


def group_advantages(scores, mask, groups, group_size, estimator, epsilon):
    """See `fastrlhf.kernels.group_advantages`. Computes in float64."""
    rows = scores.shape[0]
    group = torch.arange(rows, device=scores.device) // group_size if groups is None else groups
    known = (group >= 0) & (group < rows)
    group, kept = group.where(known, 0), known if mask is None else known & mask

    def of_group(term):
        """The sum over the kept rows of each row's group."""
        sums = torch.zeros(rows, dtype=torch.float64, device=scores.device)
        return sums.index_add(0, group, torch.where(kept, term, 0.0))[group]

    scores64 = scores.double()
    count = of_group(torch.ones_like(scores64))
    deviation = scores64 - of_group(scores64) / count
    # what rounding left of the mean; without it three times 0.1 would deviate from their mean
    deviation = deviation - of_group(deviation) / count
    divisor = {
        "grpo": (of_group(deviation.square()) / (count - 1).clamp(min=1)).sqrt() + epsilon,
        "dr_grpo": torch.ones_like(count),
        "rloo": (count - 1) / count,
    }[estimator]
    advantages = torch.where(kept, deviation / divisor, 0.0)
    moments = masked_moments(advantages, kept)
    return torch.where(known, advantages, torch.nan).to(scores.dtype), moments
