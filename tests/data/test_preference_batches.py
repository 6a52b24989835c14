from __future__ import annotations

import pytest
import torch

from fastrlhf.data.batches import TokenCollator
from fastrlhf.data.preferences import AnswerCollator, ScoreCollator

PAD = 9
ROWS = [
    {"prompt_ids": [1, 2], "chosen_ids": [3, 4, 5], "rejected_ids": [6]},
    {"prompt_ids": [], "chosen_ids": [7, 8], "rejected_ids": [1, 2, 3]},
]


def answers(max_length=None, unpadded=True, **options):
    return AnswerCollator(TokenCollator(PAD, unpadded=unpadded), max_length, **options)


def test_chosen_sequences_first_then_rejected_ones_in_one_row():
    batch = answers()(ROWS)
    assert batch["input_ids"].tolist() == [[1, 2, 3, 4, 5, 7, 8, 1, 2, 6, 1, 2, 3]]
    assert batch["lengths"].tolist() == [5, 2, 3, 3]
    assert batch["targets"].tolist() == [3, 4, 5, 8, 6, 2, 3]
    assert batch["places"].tolist() == [1, 2, 3, 5, 8, 10, 11]
    assert batch["counts"].tolist() == [3, 1, 1, 2], "the first token of a sequence never counts"
    assert next(iter(batch)) == "counts" and batch["num_tokens"] == 13


def test_padded():
    batch = answers(unpadded=False)(ROWS)
    assert batch["input_ids"].tolist() == [
        [1, 2, 3, 4, 5],
        [7, 8, PAD, PAD, PAD],
        [1, 2, 6, PAD, PAD],
        [1, 2, 3, PAD, PAD],
    ]
    assert batch["input_ids"].flatten()[batch["places"] + 1].tolist() == batch["targets"].tolist()
    assert batch["counts"].tolist() == [3, 1, 1, 2]


@pytest.mark.parametrize(
    ("keep_end", "tokens", "counts"),
    [
        (False, [1, 2, 3, 7, 8, 1, 2, 6, 1, 2, 3], [1, 1, 1, 2]),
        (True, [3, 4, 5, 7, 8, 1, 2, 6, 1, 2, 3], [2, 1, 1, 2]),
    ],
)
def test_longer_sequences_are_cut(keep_end, tokens, counts):
    batch = answers(3, keep_end=keep_end)(ROWS)
    assert batch["input_ids"].tolist() == [tokens] and batch["counts"].tolist() == counts


def test_what_the_reference_said():
    rows = [row | {"ref_chosen_logps": -1.5, "ref_rejected_logps": -2.5} for row in ROWS]
    batch = answers()(rows)
    assert batch["ref_chosen_logps"].dtype == torch.float32
    assert batch["ref_rejected_logps"].tolist() == [-2.5, -2.5]


@pytest.mark.parametrize("unpadded", [True, False])
@pytest.mark.parametrize("multiple_of", [None, 8])
def test_the_last_token_that_is_no_padding_is_scored(unpadded, multiple_of):
    collate = ScoreCollator(TokenCollator(PAD, unpadded=unpadded, multiple_of=multiple_of))
    rows = [
        {"chosen_ids": [1, 2, 3], "rejected_ids": [4]},
        {"chosen_ids": [5, PAD, 6, PAD], "rejected_ids": [PAD, PAD]},
    ]
    batch = collate(rows)
    assert "targets" not in batch and next(iter(batch)) == "places"
    starts = [0, 3, 7, 8] if unpadded else [at * batch["input_ids"].shape[1] for at in range(4)]
    assert (batch["places"] - torch.tensor(starts)).tolist() == [2, 2, 0, 0]
    assert "margin" not in batch


def test_margins():
    rows = [{"chosen_ids": [1], "rejected_ids": [2], "margin": 1}]
    margin = ScoreCollator(TokenCollator(PAD, unpadded=True))(rows)["margin"]
    assert margin.tolist() == [1.0] and margin.dtype == torch.float32
