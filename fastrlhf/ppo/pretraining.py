"""Text beside the rollouts, on which the policy stays a language model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import nn

from fastrlhf.data.order import PromptOrder
from fastrlhf.models.actor_critic import Responses, response_logprobs
from fastrlhf.models.backbone import hidden_states


class Pretraining:
    """The rows of a dataset, a batch an update, in an order that the seed decides.

    Args:
        dataset: rows with `input_ids`, of two tokens at least (the first is only read).
        limit: the longest row that the model takes; longer ones are cut.
    """

    def __init__(self, dataset: Any, limit: int | None, seed: int):
        self.dataset, self.limit, self.seed = dataset, limit, seed
        if len(dataset) == 0:
            raise ValueError("pretrain_dataset is empty: there is no text to learn from")
        for row, example in enumerate(dataset):
            if len(example["input_ids"]) < 2:
                raise ValueError(
                    f"row {row} of pretrain_dataset has fewer than two tokens: nothing to predict"
                )

    def batch(self, number: int, size: int) -> list[torch.Tensor]:
        """The tokens of each row of one batch, the first batch being number zero."""
        size = min(size, len(self.dataset))
        order = PromptOrder(len(self.dataset), size, self.seed, first_batch=number)
        rows = [self.dataset[row]["input_ids"] for row in next(iter(order))]
        return [torch.as_tensor(row)[: self.limit] for row in rows]


def pretraining_losses(
    policy: nn.Module,
    rows: list[torch.Tensor],
    micro_batch: int,
    packing: bool | None,
    device: torch.device,
    autocast: Callable[[], AbstractContextManager],
) -> Iterator[torch.Tensor]:
    """Minus the mean log-probability of the tokens of all rows, in a scalar of each micro-batch's share.

    Source: Ouyang et al., "Training language models to follow instructions" (2022), eq. 2 (the second term).

    Args:
        autocast: of the forward.
    """
    tokens = sum(len(row) - 1 for row in rows)
    for start in range(0, len(rows), micro_batch):
        text = _as_responses(rows[start : start + micro_batch], device)
        with autocast():
            hidden = hidden_states(policy, text.input_ids, text.attention_mask, packing)
            logprobs, _ = response_logprobs(policy, hidden, text, 1.0, entropy_grad=False)
        yield -logprobs.sum() / tokens


def _as_responses(rows: list[torch.Tensor], device: torch.device) -> Responses:
    """Rows padded on the right: all but the first token answers it."""
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    lengths = torch.tensor([len(row) for row in rows], device=device)
    mask = torch.arange(ids.shape[1], device=device) < lengths[:, None]
    return Responses(ids, mask, 1, mask[:, 1:])
