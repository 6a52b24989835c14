"""One metric over the steps of a run, as arrays."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastrlhf.report.units import finite


def series(rows: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """The steps at which a metric was measured, and its values.

    Args:
        rows: the rows of a metrics file, in any order; one without a step is passed over.
        name: the metric.

    Returns:
        Two float arrays of one length, in the order of the steps. A row without the metric is left out; one
        where it is null gives NaN, which shows as a gap. Both arrays are empty if no value is finite.
    """
    points = []
    for row in rows:
        step = finite(row.get("step"))
        if step is not None and name in row:
            value = finite(row[name])
            points.append((step, np.nan if value is None else value))
    points.sort(key=lambda point: point[0])
    steps, values = np.array(points, dtype=float).reshape(-1, 2).T
    return (steps, values) if np.isfinite(values).any() else (steps[:0], values[:0])


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean over the `window` values around each one (fewer at the ends), passing over NaN.

    Args:
        values: ``[n]``.
        window: an odd number, so that a mean lies in the middle of what it is the mean of.

    Returns:
        ``[n]``; NaN where no value in the window is finite.
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window must be odd and positive, got {window}.")
    present = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(present, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(present)])
    middle = np.arange(len(values))
    first = np.maximum(middle - window // 2, 0)
    last = np.minimum(middle + window // 2 + 1, len(values))
    count = counts[last] - counts[first]
    return np.where(count > 0, (sums[last] - sums[first]) / np.maximum(count, 1), np.nan)


def smoothing_window(count: int) -> int:
    """How many of `count` values to average for a curve that is calm and still follows: about a tenth."""
    return 2 * (count // 20) + 1 if count >= 20 else (3 if count >= 6 else 1)


def binned(values: np.ndarray, size: int) -> np.ndarray:
    """The means of consecutive groups of `size` values, the last one perhaps of fewer; NaN counts as zero.

    Args:
        values: ``[n]``.
        size: how many make a group, at least 1.

    Returns:
        ``[ceil(n / size)]``.
    """
    starts = np.arange(0, len(values), size)
    sums = np.add.reduceat(np.nan_to_num(values), starts) if len(values) else np.zeros(0)
    return sums / np.diff(np.append(starts, len(values)))
