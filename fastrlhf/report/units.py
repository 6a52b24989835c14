"""Numbers written for people: durations, shares, sizes."""

import math
from typing import Any


def finite(value: Any) -> float | None:
    """`value` as a float, or None if it is no finite number (missing, null, NaN, text, a truth value)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        value = float(value)
    except OverflowError:
        return None
    return value if math.isfinite(value) else None


def number(value: float) -> str:
    """About three significant digits: ``0.52``, ``12.3``, ``1,480``, ``3.1e-06``."""
    size = abs(value)
    if size >= 1e7:
        return f"{value:.2e}"
    if size >= 99.95:
        return f"{value:,.0f}"
    if size >= 9.995:
        return f"{value:.1f}"
    if size >= 0.0995 or size == 0:
        return f"{value:.2f}"
    if size >= 0.001:
        return f"{value:.3f}"
    return f"{value:.1e}" if math.isfinite(value) else str(value)


def share(value: float) -> str:
    """A share of one as a percentage: ``83 %``."""
    return f"{100 * value:.0f} %" if math.isfinite(value) else str(value)


def clock(seconds: float) -> str:
    """A duration as a clock shows it: ``3:12`` (minutes and seconds), ``2:03:12`` (hours too)."""
    minutes, second = divmod(max(0, round(seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def duration(seconds: float) -> str:
    """A duration in words: ``8.4 s``, ``12 min 05 s``, ``2 h 14 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, second = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {second:02} s"
    hours, minute = divmod(round(seconds / 60), 60)
    return f"{hours} h {minute:02} min"
