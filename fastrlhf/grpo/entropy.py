"""The coefficient of the entropy bonus: fixed, or steered by the entropy that there is."""

from __future__ import annotations

import math


class EntropyController:
    """Steers `coef` in an update's wake: up where the entropy is at the target or below, down above it.

    Source: He et al., "Skywork Open Reasoner 1" (2025), section 4.4.

    Args:
        coef: to begin with.
        target: entropy of a token (nats); None: the coefficient is fixed.
    """

    def __init__(self, coef: float, target: float | None, delta: float, low: float, high: float):
        self.coef, self.target, self.delta, self.low, self.high = coef, target, delta, low, high
        self.last = math.inf

    @property
    def steers(self) -> bool:
        """Whether the coefficient is not fixed."""
        return self.target is not None

    @property
    def applied(self) -> float:
        """The coefficient of the coming update: none above the target."""
        return self.coef if not self.steers or self.last <= self.target else 0.0

    def update(self, entropy: float) -> None:
        """Steer by the mean entropy of an update's tokens."""
        self.last = entropy
        if entropy <= self.target:
            self.coef = min(self.coef + self.delta, self.high)
        else:
            self.coef = max(self.coef - self.delta, self.low)
