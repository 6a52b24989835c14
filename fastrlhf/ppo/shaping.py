"""What is done to the scores of responses before they become rewards: normalised, clipped, less for too much length."""

from __future__ import annotations

import math

import torch


class RunningMoments:
    """Mean and variance of every score so far.

    Source: Chan et al., "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
    """

    def __init__(self, count: int = 0, mean: float = 0.0, squares: float = 0.0):
        self.count, self.mean, self.squares = count, mean, squares

    def normalise(self, scores: torch.Tensor) -> torch.Tensor:
        """Scores less the mean, over the standard deviation (unbiased; one while they are all equal), with these
        scores counted in."""
        count, mean = len(scores), float(scores.double().mean())
        total, difference = self.count + count, mean - self.mean
        self.squares += float((scores.double() - mean).square().sum())
        self.squares += difference**2 * self.count * count / total
        self.mean += difference * count / total
        self.count = total
        deviation = math.sqrt(self.squares / (total - 1)) if total > 1 else 0.0
        return (scores - self.mean) / (deviation or 1.0)

    def as_list(self) -> list[float]:
        """Its constructor's arguments."""
        return [self.count, self.mean, self.squares]


def overlong_penalty(lengths: torch.Tensor, longest: int, buffer: int) -> torch.Tensor:
    """`[B]` in [0, 1]: how far into the last `buffer` tokens of `longest` a response reaches.

    Source: Yu et al., "DAPO" (2025), eq. 13 (soft overlong punishment), its sign turned.
    """
    return ((lengths - (longest - buffer)) / buffer).clamp(0.0, 1.0)
