"""The reference's hidden states, computed once for its log-probabilities and for reward models on its base."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from fastrlhf.models.backbone import backbone, has_backbone, hidden_states
from fastrlhf.ppo.rollout import Rollout


class ReferenceStates:
    """What the reference gives for the rows of one rollout, kept until the next.

    Args:
        sharers: the reward models whose hidden states are the reference's; with none nothing is kept.
        limit: bytes that may be kept; the rows beyond are computed each time.
    """

    def __init__(self, sharers: list[nn.Module], limit: int):
        self.sharers, self.limit = sharers, limit
        self._rollout: Rollout | None = None
        self._kept: dict[int, torch.Tensor] = {}

    def of(self, rollout: Rollout) -> ReferenceStates:
        """These, another rollout's let go of."""
        if rollout is not self._rollout:
            self.clear()
            self._rollout = rollout
        return self

    def clear(self) -> None:
        """Let go of the rollout and its states."""
        self._rollout = None
        self._kept.clear()

    def of_reward(self, rows: slice, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        """`[B, P + R, D]` of the rollout's `rows`, by `compute` where they are not kept, and kept if there is room."""
        states = self.kept(rows)
        if states is None:
            states = compute()
            if (
                self.sharers
                and states.nbytes + sum(each.nbytes for each in self._kept.values()) <= self.limit
            ):
                self._kept[rows.start] = states
        return states

    def kept(self, rows: slice) -> torch.Tensor | None:
        """`[B, P + R, D]` of the rollout's `rows`, or None."""
        return self._kept.get(rows.start)


@torch.no_grad()
def stands_on(model: nn.Module, reference: nn.Module, packing: bool | None) -> bool:
    """Whether the hidden states of `model` are the reference's, and stay so: its backbone has no weights but the
    reference's own, and the two agree on two rows."""
    if not (has_backbone(model) and has_backbone(reference)):
        return False
    theirs = {_memory(parameter) for parameter in backbone(reference).parameters()}
    if not all(_memory(parameter) in theirs for parameter in backbone(model).parameters()):
        return False
    device = next(model.parameters()).device
    mask = torch.tensor([[False, True, True], [True, True, True]], device=device)
    ids = torch.tensor([[0, 0, 1], [0, 1, 0]], device=device)
    ours, theirs = (hidden_states(each, ids, mask, packing)[mask] for each in (model, reference))
    return ours.shape == theirs.shape and torch.equal(ours, theirs)


def _memory(tensor: torch.Tensor) -> tuple:
    return tensor.untyped_storage()._cdata, tensor.storage_offset(), tuple(tensor.shape), tensor.stride()
