"""What an update measures, gathered over micro-batches and averaged the way each metric is defined."""

from __future__ import annotations

import torch

from fastrlhf.kernels import PPOLoss, Stat


class UpdateStats:
    """Metrics of the updates of one step: each minibatch's averages, then their average over minibatches and epochs.

    Args:
        padded: average approxkl, ratio and entropy over padding too (TRL 1.12's definition), where approxkl is zero,
            the ratio is one and the entropy is what the model says there.
    """

    def __init__(self, padded: bool = False):
        self.padded = padded
        self.minibatches: list[torch.Tensor] = []
        self.grad_norms: list[float] = []
        self.skipped = 0
        self._start()

    def _start(self) -> None:
        self._sums: torch.Tensor | None = None
        self._loss: torch.Tensor | None = None
        self._entropy_everywhere = 0.0
        self._positions = 0

    def add(self, loss: PPOLoss, entropy: torch.Tensor, positions: int) -> None:
        """Count one micro-batch: its loss and sums, the entropy at every position, and how many positions it has."""
        first = self._sums is None
        self._sums = loss.stats if first else self._sums + loss.stats
        self._loss = loss.loss.detach() if first else self._loss + loss.loss.detach()
        self._entropy_everywhere = self._entropy_everywhere + entropy.double().sum()
        self._positions += positions

    @property
    def minibatch_loss(self) -> torch.Tensor:
        """Loss of the minibatch so far, a scalar."""
        return self._loss

    def end_minibatch(self, grad_norm: float, skipped: bool) -> None:
        """Turn the minibatch's sums into averages."""
        sums = self._sums
        tokens, states = sums[Stat.TOKENS].clamp(min=1), sums[Stat.VALUE_TOKENS].clamp(min=1)
        count, ratio, entropy = tokens, sums[Stat.RATIO], sums[Stat.ENTROPY]
        if self.padded:
            count = torch.full_like(tokens, float(self._positions))
            ratio = ratio + (count - sums[Stat.TOKENS])
            entropy = self._entropy_everywhere
        self.minibatches.append(
            torch.stack(
                [
                    sums[Stat.APPROX_KL] / count,
                    sums[Stat.CLIPPED] / tokens,
                    sums[Stat.POLICY_LOSS] / tokens,
                    sums[Stat.VALUE_LOSS] / states,
                    sums[Stat.VALUE_CLIPPED] / states,
                    entropy / count,
                    ratio / count,
                ]
            )
        )
        self.grad_norms.append(grad_norm)
        self.skipped += int(skipped)
        self._start()

    def metrics(self) -> dict[str, float]:
        """The averages under TRL's names; val/ratio_var is the (unbiased) variance over minibatches, NaN for one."""
        table = torch.stack(self.minibatches)
        names = (
            "policy/approxkl_avg",
            "policy/clipfrac_avg",
            "loss/policy_avg",
            "loss/value_avg",
            "val/clipfrac_avg",
            "policy/entropy_avg",
            "val/ratio",
        )
        averages = dict(zip(names, table.mean(dim=0).tolist(), strict=True))
        ratios = table[:, -1]
        averages["val/ratio_var"] = ratios.var().item() if len(ratios) > 1 else float("nan")
        averages["train/grad_norm"] = sum(self.grad_norms) / len(self.grad_norms)
        return averages
