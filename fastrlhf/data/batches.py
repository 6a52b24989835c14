"""Batches of tokenised sequences: in one row without padding, or padded; with the places of the targets."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from fastrlhf.data.tokenize import IGNORED

Batch = dict[str, torch.Tensor | int]
# What a padded batch has beside the inputs of a model's own forward.
NOT_FOR_THE_MODEL = (
    "labels",
    "places",
    "targets",
    "num_tokens",
    "counts",
    "margin",
    "ref_chosen_logps",
    "ref_rejected_logps",
)


class TokenCollator:
    """Makes a batch of rows with `input_ids`, perhaps `labels` (`input_ids` if absent; -100 does not count) and
    perhaps `seq_lengths` (several sequences in a row, see `fastrlhf.data.packing`).

    Every batch has `targets` `[M]`, the tokens that count, and `places` `[M]`, where in the flattened `input_ids` the
    token before each stands: the loss needs the states of these alone, and a device's host need not wait to find them.
    The first token of a sequence never counts. `num_tokens` is the number of real ones.

    - Without padding: `lengths` `[S]` (int32) of the sequences and the `longest`, `input_ids` and `position_ids`
      `[1, T]`, one sequence after the other.
    - Padded on the right: `input_ids` and `attention_mask` `[B, T]`; one sequence in a row.

    Args:
        pad_token_id: fills the padding.
        unpadded: without padding.
        multiple_of: T is a multiple of it; without padding the rest is a sequence that does not count.
    """

    def __init__(self, pad_token_id: int, *, unpadded: bool, multiple_of: int | None = None):
        self.pad_token_id, self.unpadded, self.multiple_of = pad_token_id, unpadded, multiple_of

    def __call__(self, rows: Sequence[dict[str, Any]]) -> Batch:
        tokens = [list(row["input_ids"]) for row in rows]
        labels = [list(row.get("labels", row["input_ids"])) for row in rows]
        lengths = [
            list(row["seq_lengths"]) if "seq_lengths" in row else [len(row["input_ids"])] for row in rows
        ]
        for row_labels, row_lengths in zip(labels, lengths, strict=True):
            start = 0
            for length in row_lengths:
                row_labels[start] = IGNORED
                start += length
        return (self._in_one_row if self.unpadded else self._padded)(tokens, labels, lengths)

    def _in_one_row(self, tokens: list, labels: list, lengths: list) -> Batch:
        tokens, labels, lengths = (
            list(chain.from_iterable(of_rows)) for of_rows in (tokens, labels, lengths)
        )
        missing = self._missing(len(tokens))
        if missing:
            tokens, labels = tokens + [self.pad_token_id] * missing, labels + [IGNORED] * missing
            lengths = [*lengths, missing]
        return {
            # first: transformers takes the length of a batch's first tensor for its rows, and weighs eval losses by it
            "lengths": torch.tensor(lengths, dtype=torch.int32),
            "longest": max(lengths),
            "input_ids": torch.tensor([tokens]),
            "position_ids": torch.tensor([[at for length in lengths for at in range(length)]]),
            "num_tokens": len(tokens) - missing,
            **_targets([labels]),
        }

    def _padded(self, tokens: list, labels: list, lengths: list) -> Batch:
        if any(len(row) > 1 for row in lengths):
            raise ValueError(
                "rows of several sequences (seq_lengths) cannot be padded: they would see each other"
            )
        longest = max(map(len, tokens))
        longest += self._missing(longest)
        return {
            "input_ids": _filled(tokens, longest, self.pad_token_id),
            "attention_mask": _filled([[1] * len(row) for row in tokens], longest, 0),
            "num_tokens": sum(map(len, tokens)),
            **_targets([row + [IGNORED] * (longest - len(row)) for row in labels]),
        }

    def _missing(self, length: int) -> int:
        return -length % self.multiple_of if self.multiple_of else 0


def _targets(labels: list[list[int]]) -> Batch:
    """`places` and `targets` of the labels of rows of one length."""
    flat = torch.tensor(labels).flatten()
    at = (flat != IGNORED).nonzero().squeeze(1)
    return {"places": at - 1, "targets": flat[at]}


def _filled(rows: list[list[int]], longest: int, value: int) -> torch.Tensor:
    return torch.tensor([row + [value] * (longest - len(row)) for row in rows])
