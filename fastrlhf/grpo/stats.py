"""What the updates of a step measure, under TRL's names."""

from __future__ import annotations

import math

import torch

from fastrlhf.grpo.loss import GroupLoss

_LEAST, _MOST = "least_below", "most_above"


class GroupStats:
    """Averages of each minibatch, gathered over its micro-batches."""

    def __init__(self) -> None:
        self.minibatches: list[dict[str, torch.Tensor]] = []
        self.losses: list[torch.Tensor] = []
        self.grad_norms: list[float] = []
        self._start()

    def _start(self) -> None:
        self._sums: dict[str, torch.Tensor] = {}
        self._loss: torch.Tensor | None = None

    def add(self, loss: GroupLoss, entropy: torch.Tensor, positions: int) -> None:
        """Count one micro-batch."""
        value = loss.loss.detach()
        self._loss = value if self._loss is None else self._loss + value
        for name, addend in loss.sums.items():
            so_far = self._sums.get(name)
            join = {_LEAST: torch.minimum, _MOST: torch.maximum}.get(name, torch.add)
            self._sums[name] = addend if so_far is None else join(so_far, addend)

    @property
    def minibatch_loss(self) -> torch.Tensor:
        """Loss of the minibatch so far, a scalar."""
        return self._loss

    @property
    def minibatch_entropy(self) -> torch.Tensor:
        """Mean entropy of the tokens that the policy's term is of, a scalar."""
        return self._sums["entropy_among"] / self._sums["among"].clamp(min=1)

    def end_minibatch(self, grad_norm: float, skipped: bool) -> None:
        """Take the minibatch's sums."""
        self.minibatches.append(self._sums)
        self.losses.append(self._loss)
        self.grad_norms.append(grad_norm)
        self._start()

    def metrics(self) -> list[dict[str, float]]:
        """Of each minibatch."""
        return [
            {"loss": float(loss), "grad_norm": norm, **_averages(sums)}
            for loss, norm, sums in zip(self.losses, self.grad_norms, self.minibatches, strict=True)
        ]


def _averages(sums: dict[str, torch.Tensor]) -> dict[str, float]:
    of = {name: float(value) for name, value in sums.items()}
    tokens, units = max(1.0, of["tokens"]), max(1.0, of["units"])
    found = {
        "entropy": of["entropy"] / tokens,
        "clip_ratio/low_mean": of["below"] / units,
        "clip_ratio/high_mean": of["above"] / units,
        "clip_ratio/region_mean": (of["below"] + of["above"]) / units,
        "clip_ratio/low_min": of[_LEAST] if math.isfinite(of[_LEAST]) else math.nan,
        "clip_ratio/high_max": of[_MOST] if math.isfinite(of[_MOST]) else math.nan,
    }
    if "policy_loss" in of:
        found["policy_loss"] = of["policy_loss"]
    if "kl" in of:
        found["kl"] = of["kl"] / tokens
    return found
