from __future__ import annotations

from types import SimpleNamespace

from fastrlhf.trainers.preferences import preferences
from tests.support.preferences import pairs
from tests.support.tiny import tiny_tokenizer

ARGS = SimpleNamespace(on_bad_rows="stop", dataset_num_proc=None)


def test_a_prompt_after_many_rows_without_one():
    """Arrow writes a thousand rows at a time, and empty lists do not say what they are of."""
    rows = [{"chosen_ids": [1], "rejected_ids": [2]}] * 1000 + [
        {"prompt_ids": [3], "chosen_ids": [1], "rejected_ids": [2]}
    ]
    dataset = preferences(rows, None, ARGS, "rows")
    assert dataset[0]["prompt_ids"] == [] and dataset[1000]["prompt_ids"] == [3]


def test_apart_and_joined():
    row = pairs(1, margin=2)[0]
    apart, joined = (
        preferences([row], tiny_tokenizer(), ARGS, "rows", joined=joined)[0] for joined in (False, True)
    )
    assert (
        list(joined) == ["chosen_ids", "rejected_ids", "margin"]
        and joined["margin"] == apart["margin"] == 2.0
    )
    for side in ("chosen_ids", "rejected_ids"):
        assert joined[side] == apart["prompt_ids"] + apart[side] and apart[side]
    assert len(apart["prompt_ids"]) == len(row["prompt"].split())
