"""A plain reward function for a trainer that takes only modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class FunctionReward(nn.Module):
    """A reward function in the shape that TRL asks for: a backbone whose last hidden state `score` maps to rewards.

    Args:
        function: `(prompts, completions) -> scores`.
        tokenizer: turns tokens back into text.
    """

    base_model_prefix = "backbone"

    def __init__(self, function: Callable[[list[str], list[str]], Sequence[float]], tokenizer: Any):
        super().__init__()
        self.function, self.tokenizer = function, tokenizer
        self.score = nn.Identity()
        self.prompt_length = 0  # TRL does not tell a reward model where the response begins

    def backbone(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **options: Any
    ) -> SimpleNamespace:
        """Scores of the rows, at every position `[B, T, 1]`: TRL reads the one of the last token."""
        mask, start = attention_mask.bool(), self.prompt_length
        prompts, completions = (
            self.tokenizer.batch_decode(
                [row[kept] for row, kept in zip(input_ids[:, part], mask[:, part], strict=True)],
                skip_special_tokens=True,
            )
            for part in (slice(start), slice(start, None))
        )
        scores = torch.tensor(list(self.function(prompts, completions)), dtype=torch.float32)
        return SimpleNamespace(hidden_states=[scores[:, None, None].expand(*input_ids.shape, 1)])
