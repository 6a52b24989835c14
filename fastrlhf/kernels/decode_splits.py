"""Into how many parts `decode_attention` splits each row, so that a few long rows fill a GPU."""

from __future__ import annotations

# About two programs for each multiprocessor of the largest cards (132 to 148). A guess until a GPU has measured it.
PROGRAMS = 256
LEAST_POSITIONS = 256  # of a part: below that the merge costs more than it brings
MOST_SPLITS = 64


def decode_splits(rows_and_heads: int, capacity: int, window: int | None) -> int:
    """A power of two, from what the host knows: how long the rows are is on the device.

    Args:
        rows_and_heads: rows times key-value heads.
        capacity: positions that a row may have.
        window: positions that it sees of them, all if None.
    """
    seen = capacity if window is None else min(capacity, window)
    wanted = min(PROGRAMS // max(rows_and_heads, 1), seen // LEAST_POSITIONS, MOST_SPLITS)
    return 1 << max(wanted.bit_length() - 1, 0)
