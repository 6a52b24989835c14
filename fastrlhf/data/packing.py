"""Sequences packed into rows of at most so many tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

STRATEGIES = ("bfd", "bfd_split", "wrapped")
Columns = dict[str, list[list[int]]]


def pack(columns: Columns, max_length: int, strategy: str = "bfd") -> Columns:
    """Sequences packed into as few rows as the strategy finds.

    Args:
        columns: by name, lists of sequences of equal lengths (`input_ids` and `labels`).
        max_length: tokens in a row, at most.
        strategy: "bfd" puts the longest sequences first, each where least room stays (best-fit decreasing: Ding et al.,
            "Fewer truncations improve language modeling", 2024), and cuts what is longer than a row; "bfd_split" makes
            sequences of such remainders; "wrapped" joins all and cuts them at every row's end.

    Returns:
        The packed columns, and with the first two strategies `seq_lengths`, the lengths of the sequences in each row.

    Raises:
        ValueError: another strategy, or no room for a token.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"packing_strategy is {strategy!r}, expected one of {', '.join(STRATEGIES)}")
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}, expected at least 1")
    if strategy == "wrapped":
        return {name: _wrapped(sequences, max_length) for name, sequences in columns.items()}
    columns = {
        name: [piece for sequence in sequences for piece in _pieces(sequence, max_length, strategy)]
        for name, sequences in columns.items()
    }
    lengths = [len(sequence) for sequence in next(iter(columns.values()))]
    rows = best_fit(lengths, max_length)
    packed = {
        name: [[token for number in row for token in sequences[number]] for row in rows]
        for name, sequences in columns.items()
    }
    return packed | {"seq_lengths": [[lengths[number] for number in row] for row in rows]}


def best_fit(lengths: Sequence[int], room: int) -> list[list[int]]:
    """Numbers of sequences for each row: the longest first, each into the row with the least room that takes it, the
    first opened among equals; a new row where none does. Sequences without a token are left out."""
    rows: list[list[int]] = []
    left: list[int] = []  # the rooms that rows have left, in order, each once
    with_room: dict[int, deque[int]] = {}
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[number]
        if length == 0:
            continue
        at = bisect_left(left, length)
        if at == len(left):
            rows.append([])
            row, space = len(rows) - 1, room
        else:
            space = left[at]
            row = with_room[space].popleft()
            if not with_room[space]:
                del with_room[space], left[at]
        rows[row].append(number)
        if space - length:
            if space - length not in with_room:
                insort(left, space - length)
                with_room[space - length] = deque()
            with_room[space - length].append(row)
    return rows


def _pieces(sequence: list[int], max_length: int, strategy: str) -> list[list[int]]:
    if strategy == "bfd":
        return [sequence[:max_length]]
    return [sequence[start : start + max_length] for start in range(0, len(sequence), max_length)]


def _wrapped(sequences: list[list[int]], max_length: int) -> list[list[int]]:
    tokens = [token for sequence in sequences for token in sequence]
    return [tokens[start : start + max_length] for start in range(0, len(tokens), max_length)]
