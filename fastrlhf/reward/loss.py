"""What a reward model learns from a pair."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def pairwise_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    margin: torch.Tensor | None = None,
    center_coefficient: float | None = None,
) -> torch.Tensor:
    """`-log sigmoid(chosen - rejected - margin) + center_coefficient (chosen + rejected)^2` of each pair, `[P]`.

    Source: Touvron et al., "Llama 2" (2023), eq. 2, for the margin; Eisenstein et al., "Helping or herding?" (2023),
    eq. 2, for the centring.

    Args:
        chosen, rejected: `[P]`, the rewards of either sequence.
        margin: `[P]`, by how much the chosen reward should be above the other; None: any.
        center_coefficient: of the second term; None: it is left out.
    """
    differences = chosen - rejected
    losses = -logsigmoid(differences if margin is None else differences - margin)
    return losses if center_coefficient is None else losses + center_coefficient * (chosen + rejected) ** 2
