"""Hidden states of a batch, whichever way it was made."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fastrlhf.data.batches import NOT_FOR_THE_MODEL
from fastrlhf.device.observe import host_waits
from fastrlhf.models.backbone import MASK_LOOKED_AT, backbone, joined_hidden_states


def batch_states(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """`[1, T, D]` of a batch without padding, else `[B, T, D]` of our padded ones and of those of other collators."""
    if "lengths" in inputs:
        names = ("input_ids", "position_ids", "lengths", "longest")
        return joined_hidden_states(model, *(inputs[name] for name in names))
    passed = {name: value for name, value in inputs.items() if name not in NOT_FOR_THE_MODEL}
    with host_waits(MASK_LOOKED_AT):
        return backbone(model)(**passed, use_cache=False).last_hidden_state


def states_at_places(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """`[M, D]`: the hidden states of one of our batches at its `places`."""
    return batch_states(model, inputs).flatten(0, 1).index_select(0, inputs["places"])
