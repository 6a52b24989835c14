"""The states that enter the first trained layer, computed once for each row of a rollout and used in all its passes."""

from __future__ import annotations

import torch
from torch import nn

from fastrlhf.device.observe import host_waits
from fastrlhf.models.actor_critic import Responses
from fastrlhf.models.frozen import Entering, bottom_states, frozen_depth
from fastrlhf.ppo.rollout import Rollout


class FrozenStates:
    """What the frozen bottom of a policy gives for the rows of one rollout, kept until the next.

    Args:
        model: the policy.
        depth: how many of its layers are frozen (see `frozen_depth`); with 0 nothing is done.
        limit: bytes that may be kept; the rows beyond are computed each time.
    """

    def __init__(self, model: nn.Module, depth: int, limit: int):
        self.model, self.depth, self.limit = model, depth, limit
        self.kept: dict[int, torch.Tensor] = {}
        self.nbytes = 0
        self._rollout: Rollout | None = None

    def begin(self, rollout: Rollout) -> None:
        """Let go of another rollout's states.

        Raises:
            RuntimeError: a layer that was frozen when the trainer was made is no longer.
        """
        if self.depth and frozen_depth(self.model) < self.depth:
            raise RuntimeError(
                f"one of the {self.depth} bottom layers that were frozen when the trainer was made requires a gradient "
                "now: set frozen layers before, or make a new trainer"
            )
        if rollout is not self._rollout:
            self.clear()
            self._rollout = rollout

    def clear(self) -> None:
        """Let go of the rollout and its states."""
        self._rollout = None
        self.kept.clear()
        self.nbytes = 0

    def enter(self, responses: Responses, rows: torch.Tensor | slice) -> Responses:
        """The same responses with the states of their tokens.

        Args:
            rows: which rows of the rollout they are.
        """
        if self.depth == 0 or responses.padding_counts:
            return responses
        with host_waits("which rows a micro-batch has"):
            numbers = _numbers(rows, len(responses.input_ids))
            lengths = responses.tokens()[1].sum(dim=1).tolist()
        missing = [place for place, number in enumerate(numbers) if number not in self.kept]
        fresh = self._compute(responses, missing, lengths)
        for place, states in fresh.items():
            self._keep(numbers[place], states)
        states = [
            fresh[place] if place in fresh else self.kept[number] for place, number in enumerate(numbers)
        ]
        return responses._replace(entering=Entering(self.depth, torch.cat(states)[None]))

    def _compute(
        self, responses: Responses, places: list[int], lengths: list[int]
    ) -> dict[int, torch.Tensor]:
        """`[length, D]` of the rows at these places of `responses`, in one forward."""
        if not places:
            return {}
        ids, mask = responses.tokens()
        if len(places) < len(ids):
            some = torch.tensor(places, device=ids.device)
            ids, mask = ids[some], mask[some]
        states = bottom_states(self.model, self.depth, ids, mask)[0]
        parts = states.split([lengths[place] for place in places])
        return dict(zip(places, parts, strict=True))

    def _keep(self, number: int, states: torch.Tensor) -> None:
        if self.nbytes + states.nbytes <= self.limit:
            # a copy: a part of the whole would keep all of it
            self.kept[number] = states.clone()
            self.nbytes += states.nbytes


def _numbers(rows: torch.Tensor | slice, count: int) -> list[int]:
    if isinstance(rows, slice):
        return list(range(rows.start, rows.start + count))
    return rows.tolist()
