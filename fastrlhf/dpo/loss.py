"""What a policy learns from a pair."""

from __future__ import annotations

import torch
from torch.nn.functional import logsigmoid


def preference_loss(
    chosen: torch.Tensor,
    rejected: torch.Tensor,
    tokens: torch.Tensor,
    *,
    loss_type: str,
    beta: float,
    label_smoothing: float = 0.0,
) -> torch.Tensor:
    """The loss of each pair, `[P]`.

    - "sigmoid": `-(1 - e) log sigmoid(z) - e log sigmoid(-z)`, `z = beta (chosen - rejected)`: Rafailov et al., "Direct
      preference optimization" (2023), eq. 7, and with `e = label_smoothing` Mitchell, "A note on DPO with noisy
      preferences" (2023), eq. 3.
    - "ipo": `(chosen / n - rejected / m - 1 / (2 beta))^2`: Azar et al., "A general theoretical paradigm to understand
      learning from human preferences" (2023), eq. 17, with log-ratios a token, as its authors compute it.

    Args:
        chosen, rejected: `[P]`, the log-probability of either sequence under the policy less that under the reference.
        tokens: `[2P]`, how many tokens the chosen sequences (n), then the rejected ones (m) have.
    """
    if loss_type == "ipo":
        chosen_tokens, rejected_tokens = tokens.clamp(min=1).chunk(2)
        return (chosen / chosen_tokens - rejected / rejected_tokens - 1 / (2 * beta)) ** 2
    assert loss_type == "sigmoid", loss_type
    logits = beta * (chosen - rejected)
    return -(1 - label_smoothing) * logsigmoid(logits) - label_smoothing * logsigmoid(-logits)
