from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrlhf.data.packing import STRATEGIES, best_fit, pack


def columns(*lengths):
    """Sequences of these lengths whose tokens are all different, and labels that are their negatives."""
    tokens = iter(range(1, sum(lengths) + 1))
    sequences = [[next(tokens) for _ in range(length)] for length in lengths]
    return {"input_ids": sequences, "labels": [[-token for token in sequence] for sequence in sequences]}


def test_by_hand():
    packed = pack(columns(5, 2, 3, 1), 4)
    assert packed["input_ids"] == [[1, 2, 3, 4], [8, 9, 10, 11], [6, 7]]
    assert packed["seq_lengths"] == [[4], [3, 1], [2]]
    assert packed["labels"] == [[-token for token in row] for row in packed["input_ids"]]
    split = pack(columns(5, 2, 3, 1), 4, "bfd_split")
    assert split["input_ids"] == [[1, 2, 3, 4], [8, 9, 10, 5], [6, 7, 11]]
    assert split["seq_lengths"] == [[4], [3, 1], [2, 1]]
    wrapped = pack(columns(5, 2, 3, 1), 4, "wrapped")
    assert wrapped["input_ids"] == [[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11]] and "seq_lengths" not in wrapped


def test_a_sequence_goes_where_least_room_stays():
    # 6 and 5 open rows with 2 and 3 left of 8: the 2 fills the first, though the second has room too
    assert best_fit([6, 5, 2], 8) == [[0, 2], [1]]
    assert best_fit([6, 5, 3], 8) == [[0], [1, 2]]
    assert best_fit([6, 6, 2], 8) == [[0, 2], [1]], "the first opened among equals"
    assert best_fit([0, 8, 0], 8) == [[1]]


@given(
    lengths=st.lists(st.integers(0, 30), max_size=60),
    room=st.integers(1, 20),
    strategy=st.sampled_from(STRATEGIES),
)
def test_no_row_is_too_long_and_no_token_is_lost_or_torn(lengths, room, strategy):
    given_columns = columns(*lengths)
    packed = pack(given_columns, room, strategy)
    assert all(0 < len(row) <= room for row in packed["input_ids"])
    assert packed["labels"] == [[-token for token in row] for row in packed["input_ids"]]
    kept = sorted(token for row in packed["input_ids"] for token in row)
    cut = slice(room) if strategy == "bfd" else slice(None)
    assert kept == sorted(token for sequence in given_columns["input_ids"] for token in sequence[cut])
    if strategy == "wrapped":
        assert all(len(row) == room for row in packed["input_ids"][:-1])
        return
    for row, parts in zip(packed["input_ids"], packed["seq_lengths"], strict=True):
        assert sum(parts) == len(row) and min(parts) > 0
        starts = [sum(parts[:number]) for number in range(len(parts))]
        for start, length in zip(starts, parts, strict=True):
            assert row[start : start + length] == list(range(row[start], row[start] + length)), "in order"


@given(lengths=st.lists(st.integers(1, 20), min_size=1, max_size=60))
def test_best_fit_is_never_worse_than_half_full(lengths):
    rows = best_fit(lengths, 20)
    assert len(rows) <= 2 * sum(lengths) / 20 + 1


def test_what_cannot_be_packed():
    with pytest.raises(
        ValueError, match="packing_strategy is 'ffd', expected one of bfd, bfd_split, wrapped"
    ):
        pack(columns(1), 4, "ffd")
    with pytest.raises(ValueError, match="max_length is 0"):
        pack(columns(1), 0)
