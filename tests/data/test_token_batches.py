from __future__ import annotations

import pytest
import torch

from fastrlhf.data.batches import TokenCollator

ROWS = [{"input_ids": [1, 2, 3]}, {"input_ids": [4, 5], "labels": [-100, 5]}]
PAD = 9


def as_lists(batch):
    return {name: value.tolist() if torch.is_tensor(value) else value for name, value in batch.items()}


def test_without_padding():
    assert as_lists(TokenCollator(PAD, unpadded=True)(ROWS)) == {
        "lengths": [3, 2],
        "longest": 3,
        "input_ids": [[1, 2, 3, 4, 5]],
        "position_ids": [[0, 1, 2, 0, 1]],
        "num_tokens": 5,
        "places": [0, 1, 3],
        "targets": [2, 3, 5],
    }


def test_padded():
    assert as_lists(TokenCollator(PAD, unpadded=False)(ROWS)) == {
        "input_ids": [[1, 2, 3], [4, 5, PAD]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "num_tokens": 5,
        "places": [0, 1, 3],
        "targets": [2, 3, 5],
    }


def test_rows_of_several_sequences():
    packed = {"input_ids": [1, 2, 3, 4, 5], "labels": [1, 2, 3, 4, 5], "seq_lengths": [3, 2]}
    batch = TokenCollator(PAD, unpadded=True)([packed, {"input_ids": [6, 7]}])
    assert batch["lengths"].tolist() == [3, 2, 2]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1]]
    assert batch["targets"].tolist() == [2, 3, 5, 7], "the first token of a sequence has nothing before it"
    assert packed["labels"] == [1, 2, 3, 4, 5], "the rows stay as they are"
    with pytest.raises(ValueError, match="cannot be padded: they would see each other"):
        TokenCollator(PAD, unpadded=False)([packed])


@pytest.mark.parametrize("unpadded", [True, False])
def test_to_a_multiple(unpadded):
    batch = TokenCollator(PAD, unpadded=unpadded, multiple_of=4)(ROWS)
    assert batch["input_ids"].shape == ((1, 8) if unpadded else (2, 4))
    assert batch["num_tokens"] == 5 and batch["targets"].tolist() == [2, 3, 5]
    tokens = batch["input_ids"].flatten()
    assert tokens[batch["places"] + 1].tolist() == batch["targets"].tolist()
    if unpadded:
        assert batch["lengths"].tolist() == [3, 2, 3] and batch["longest"] == 3


def test_where_nothing_counts():
    batch = TokenCollator(PAD, unpadded=True)([{"input_ids": [1, 2], "labels": [1, -100]}])
    assert batch["places"].tolist() == batch["targets"].tolist() == []
