"""Batches of preferences: the chosen sequences of all pairs, then the rejected ones, in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from fastrlhf.data.batches import Batch, TokenCollator
from fastrlhf.data.tokenize import IGNORED

SIDES = ("chosen_ids", "rejected_ids")


class AnswerCollator:
    """Batches in which what follows the prompt counts, of rows with `prompt_ids`, `chosen_ids` and `rejected_ids`.

    What a batch has is what a `TokenCollator` makes of 2P sequences, and `counts` `[2P]`: how many of the `targets`
    each has. Rows may have `ref_chosen_logps` and `ref_rejected_logps`, which are then `[P]`, float32.

    Args:
        tokens: batches sequences.
        max_length: longest sequence, prompt and answer; None: any.
        keep_end: cut the beginning off what is longer, and not the end.
    """

    def __init__(self, tokens: TokenCollator, max_length: int | None, *, keep_end: bool = False):
        self.tokens = tokens
        self.kept = slice(-max_length, None) if max_length and keep_end else slice(max_length)

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        sequences = [self._sequence(row["prompt_ids"], row[side]) for side in SIDES for row in rows]
        counts = [sum(label != IGNORED for label in one["labels"][1:]) for one in sequences]
        # first: transformers takes the length of a batch's first tensor for its rows, and weighs eval losses by it
        batch: Batch = {"counts": torch.tensor(counts)} | self.tokens(sequences)
        for name in ("ref_chosen_logps", "ref_rejected_logps"):
            if name in rows[0]:
                batch[name] = torch.tensor([row[name] for row in rows])
        return batch

    def _sequence(self, prompt: list[int], answer: list[int]) -> dict[str, list[int]]:
        input_ids, labels = [*prompt, *answer], [IGNORED] * len(prompt) + list(answer)
        return {"input_ids": input_ids[self.kept], "labels": labels[self.kept]}


class ScoreCollator:
    """Batches of which the last state of each sequence is scored, of rows with `chosen_ids` and `rejected_ids`.

    What a batch has is what a `TokenCollator` makes of 2P sequences, but for the targets: `places` `[2P]` are where the
    last token stands that is no padding token (as transformers' sequence classifiers find it, also where the end token
    pads). Rows may have a `margin`, which is then `[P]`, float32.

    Args:
        tokens: batches sequences.
    """

    def __init__(self, tokens: TokenCollator):
        self.tokens = tokens

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        sequences = [list(row[side]) for side in SIDES for row in rows]
        batch = self.tokens([{"input_ids": tokens} for tokens in sequences])
        del batch["targets"]
        if "lengths" in batch:
            starts = [0, *accumulate(map(len, sequences))]
        else:
            longest = batch["input_ids"].shape[1]
            starts = range(0, len(sequences) * longest, longest)
        places = [start + self._last(tokens) for start, tokens in zip(starts, sequences, strict=False)]
        batch = {"places": torch.tensor(places)} | {
            name: value for name, value in batch.items() if name != "places"
        }  # first, as an answer's counts
        if "margin" in rows[0]:
            batch["margin"] = torch.tensor([row["margin"] for row in rows], dtype=torch.float32)
        return batch

    def _last(self, tokens: list[int]) -> int:
        return max((at for at, token in enumerate(tokens) if token != self.tokens.pad_token_id), default=0)
