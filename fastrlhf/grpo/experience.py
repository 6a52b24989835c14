"""What a group trainer learns from a rollout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch

from fastrlhf.grpo.rewards import Completed
from fastrlhf.ppo.rollout import Rollout


class LearnedFrom(NamedTuple):
    """What the loss of a micro-batch takes: see `GroupExperience`."""

    old_logprobs: torch.Tensor | None
    ref_logprobs: torch.Tensor | None
    advantages: torch.Tensor
    mask: torch.Tensor
    weights: torch.Tensor | None


@dataclass
class Scored:
    """Completions with what is said of them, on the device.

    rewards: `[B, rewards]`, NaN where a reward has nothing to say; truncated: `[B]`, bool: those without an end token.
    """

    completed: Completed
    rewards: torch.Tensor
    truncated: torch.Tensor


@dataclass
class GroupExperience:
    """A rollout with its advantages.

    Attributes:
        scored: the completions and their rewards.
        shaped: `[B]`, what became of the rewards' sum before completions were compared.
        advantages: `[B]`.
        mask: `[B, R]`, bool: the tokens that are learned from.
        logprobs, ref_logprobs: `[B, R]`, under the policy that sampled and the reference, or None where not needed.
        weights: `[B, R]`, of an off-policy correction, or None.
        tokens: how many are learned from, a scalar.
        kl: mean KL of a token to the reference (nats), where it is in the reward, or None.
    """

    rollout: Rollout
    scored: Scored
    shaped: torch.Tensor
    advantages: torch.Tensor
    mask: torch.Tensor
    logprobs: torch.Tensor | None
    ref_logprobs: torch.Tensor | None
    weights: torch.Tensor | None
    tokens: torch.Tensor
    kl: torch.Tensor | None

    def part(self, rows: torch.Tensor, width: int) -> LearnedFrom:
        """Some rows, their first `width` columns."""
        columns = slice(width)

        def of_rows(tensor: torch.Tensor | None) -> torch.Tensor | None:
            return None if tensor is None else tensor[rows, columns]

        return LearnedFrom(
            of_rows(self.logprobs),
            of_rows(self.ref_logprobs),
            self.advantages[rows],
            of_rows(self.mask),
            of_rows(self.weights),
        )
