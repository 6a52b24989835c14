"""Responses to a batch of prompts: sampled, or put in by an override, and cut where they end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from fastrlhf.data.prompts import left_pad
from fastrlhf.generation.batches import generate, widen
from fastrlhf.models.backbone import evaluation_mode
from fastrlhf.ppo.rollout import Rollout, check_responses, finish_responses


class Samples:
    """The part of a trainer that samples.

    Attributes:
        response_length, response_length_name: the longest response, in tokens, and the option that says so.
        sampling: settings of the generator.
        rollout_weights: what rollouts compute with in place of the weights (see `fastrlhf.generate`), or None.
    """

    response_length: int
    response_length_name = "response_length"
    sampling: dict[str, Any]
    rollout_weights: str | None = None

    def generate_responses(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Responses `[B, R]`, int64, R at most the longest that may be; override it to put in rollouts of your own.

        Args:
            input_ids: prompts `[B, P]`, padded on the left, those of one prompt side by side; attention_mask like it
                (bool).

        Returns:
            Tokens. What follows a row's first stop token or pad token is ignored.
        """
        return self._generate(input_ids, attention_mask, weights=self.rollout_weights)

    def _generate(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **settings: Any
    ) -> torch.Tensor:
        """Tokens `[B, R]`; they and the generator's log-probabilities are kept in `_sampled`."""
        # in evaluation mode gradient checkpointing, which keeps no cache, is off
        with self.autocast(), evaluation_mode(self.policy_model):
            self._sampled = generate(
                self.policy_model,
                input_ids,
                attention_mask,
                batch_size=self.args.local_rollout_forward_batch_size,
                pad_token_id=self.pad_token_id,
                first_row_id=self.state.episode,
                **self.sampling | {"seed": self.sampling_seed} | settings,
            )
        return self._sampled.tokens

    @torch.no_grad()
    def rollout(
        self, prompts: dict[str, Any], generate: Callable | None = None, copies: int | None = None
    ) -> Rollout:
        """Responses to a batch of prompts, cut at their stop tokens.

        Args:
            copies: how many to each prompt, side by side; as many as the run makes if None.
        """
        copies = self.plan.num_generations if copies is None else copies
        input_ids = prompts["input_ids"].to(self.args.device)
        mask = prompts.get("attention_mask")
        mask = input_ids != self.pad_token_id if mask is None else mask.to(self.args.device)
        prompt_ids, prompt_mask = (
            tensor.repeat_interleave(copies, dim=0) for tensor in left_pad(input_ids, mask, self.pad_token_id)
        )
        self._sampled = None
        tokens = (generate or self.generate_responses)(prompt_ids, prompt_mask).to(self.args.device)
        check_responses(tokens, len(prompt_ids), self.response_length, self.response_length_name)
        # an override may have changed what was sampled
        as_sampled = self._sampled is not None and torch.equal(tokens, self._sampled.tokens)
        # a column for the state after the longest response, where the score lands: else it would depend on the others
        tokens = widen(tokens, min(tokens.shape[1] + 1, self.response_length), self.pad_token_id)
        response_ids, lengths = finish_responses(tokens, self.stop_token_ids, self.pad_token_id)
        sampled = widen(self._sampled.logprobs, tokens.shape[1], 0.0) if as_sampled else None
        return Rollout(prompt_ids, prompt_mask, response_ids, lengths, sampled, prompts.get("rows"))
