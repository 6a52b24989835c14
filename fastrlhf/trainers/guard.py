"""No loss or gradient that is not a number ever reaches a weight."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from fastrlhf.device.observe import host_waits
from fastrlhf.memory.adamw import AdamW
from fastrlhf.memory.hybrid_adam import HybridAdam


class TrainingStopped(RuntimeError):
    """The run cannot go on; the message says why, and which checkpoint holds its last good state."""


class UpdateGuard:
    """Clips and steps an optimizer, and skips the updates that are not finite.

    Attributes:
        skipped: updates skipped since the run began.
        in_a_row: updates skipped since the last one that was made.
    """

    def __init__(self) -> None:
        self.skipped = self.in_a_row = 0

    def step(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        loss: torch.Tensor,
        max_grad_norm: float,
    ) -> tuple[float, bool]:
        """Clip the gradient's norm to `max_grad_norm` (0: not at all) and step. Our AdamW clips in its own pass.

        Returns:
            The norm before clipping, and whether the update was skipped.
        """
        if isinstance(optimizer, HybridAdam):  # has the gradients, wherever they are
            total = optimizer.clip_grad_norm_(max_grad_norm or math.inf)
        else:
            with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
            total = nn.utils.get_total_norm([parameter.grad for parameter in with_gradient])
        with host_waits("whether the update is finite"):
            norm, value = torch.stack([total.double(), loss.detach().double()]).tolist()
        if not (math.isfinite(norm) and math.isfinite(value)):
            self.skipped += 1
            self.in_a_row += 1
            return norm, True
        bound = max_grad_norm or None
        if isinstance(optimizer, AdamW):
            optimizer.step(grad_norm=total, max_norm=bound)
        else:
            if bound is not None and not isinstance(optimizer, HybridAdam):
                nn.utils.clip_grads_with_norm_(with_gradient, bound, total)
            optimizer.step()
        self.in_a_row = 0
        return norm, False
