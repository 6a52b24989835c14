"""A rollout: prompts, the responses sampled for them, and where each response ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fastrlhf.device.observe import host_waits
from fastrlhf.models.actor_critic import Responses


@dataclass
class Rollout:
    """Prompts and responses of one step.

    Attributes:
        prompt_ids, prompt_mask: `[B, P]`, padded on the left.
        response_ids: `[B, R]`, cut after the first stop token and padded.
        lengths: `[B]`: tokens of each response, its stop token included.
        sampled_logprobs: `[B, R]`, the generator's, or None where it did not keep them.
        rows: the rows of the dataset that the prompts are of, where the collator keeps them; each has as many
            responses, side by side.
    """

    prompt_ids: torch.Tensor
    prompt_mask: torch.Tensor
    response_ids: torch.Tensor
    lengths: torch.Tensor
    sampled_logprobs: torch.Tensor | None = None
    rows: list[dict[str, Any]] | None = None

    @property
    def mask(self) -> torch.Tensor:
        """`[B, R]`: the tokens that each response has."""
        return _positions(self.response_ids) < self.lengths[:, None]

    @property
    def state_mask(self) -> torch.Tensor:
        """`[B, R]`: the tokens, and the position after them where there is room (the state in which it ended)."""
        return _positions(self.response_ids) <= self.lengths[:, None]

    def contains(self, token_id: int | None) -> torch.Tensor:
        """`[B]`: which responses contain a token."""
        if token_id is None:
            return torch.zeros_like(self.lengths, dtype=torch.bool)
        return ((self.response_ids == token_id) & self.mask).any(dim=1)

    def responses(self, rows: torch.Tensor | slice, *, everywhere: bool = False) -> Responses:
        """What models read of some rows, without columns that are padding in all of them.

        Args:
            rows: which rows.
            everywhere: count padding as response too (only to average over it, as TRL does), and cut no column.
        """
        mask, prompt_mask = self.mask[rows], self.prompt_mask[rows]
        skip, keep = 0, mask.shape[1]
        if not everywhere:
            with host_waits("how wide a micro-batch is"):
                widest = torch.stack([prompt_mask.sum(dim=1).max(), self.lengths[rows].max()])
                longest_prompt, longest_response = widest.tolist()
            skip = prompt_mask.shape[1] - longest_prompt
            # one column more than the longest response, so that the state after its end has a value too
            keep = min(keep, longest_response + 1)
        prompt_mask = prompt_mask[:, skip:]
        return Responses(
            torch.cat([self.prompt_ids[rows][:, skip:], self.response_ids[rows][:, :keep]], dim=1),
            torch.cat([prompt_mask, mask[:, :keep]], dim=1),
            prompt_mask.shape[1],
            torch.ones_like(mask) if everywhere else mask[:, :keep],
            everywhere,
        )


def check_responses(tokens: torch.Tensor, rows: int, longest: int, name: str) -> None:
    """Raise ValueError unless `tokens` are responses `[rows, R]`, R from 1 to `longest`, the option `name`."""
    if tokens.dim() != 2 or tokens.shape[0] != rows or not 1 <= tokens.shape[1] <= longest:
        raise ValueError(
            f"generate_responses gave shape {list(tokens.shape)}, expected [{rows}, R] with 1 <= R <= "
            f"{name}={longest}"
        )


def finish_responses(
    tokens: torch.Tensor, stop_token_ids: Sequence[int], pad_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Cut responses after their first stop token, and pad what follows.

    Args:
        tokens: `[B, R]` as generated; a row may be padded after its end.
        stop_token_ids: the tokens that end a response.
        pad_token_id: also ends a response, and is not part of it.

    Returns:
        the tokens `[B, R]` and the lengths `[B]`, a stop token counted.
    """
    positions = _positions(tokens)
    width = tokens.shape[1]
    stops = torch.tensor(list(stop_token_ids), dtype=tokens.dtype, device=tokens.device)
    after_stop = torch.where(torch.isin(tokens, stops), positions + 1, width).amin(dim=1)
    first_pad = torch.where(tokens == pad_token_id, positions, width).amin(dim=1)
    lengths = torch.minimum(after_stop, first_pad)
    return tokens.masked_fill(positions >= lengths[:, None], pad_token_id), lengths


def _positions(tokens: torch.Tensor) -> torch.Tensor:
    return torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
