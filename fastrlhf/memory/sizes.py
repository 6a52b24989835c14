"""Sizes as people write them: "6GB", "512MiB", a number of bytes."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(name: str, size: str | int | float) -> int:
    """Bytes of a size.

    Args:
        name: the argument that it is, for messages.
        size: a number of bytes, or a number with B, KB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB (of 1024).

    Raises:
        ValueError: it is none of these, or negative.
    """
    if isinstance(size, str):
        match = _SIZE.fullmatch(size)
        if match is None or match[2].lower() not in _UNITS:
            raise ValueError(
                f'{name} is {size!r}, expected a number of bytes or a size such as "6GB" or "512MiB"'
            )
        size = float(match[1]) * _UNITS[match[2].lower()]
    if isinstance(size, bool) or not isinstance(size, (int, float)) or not 0 <= size < float("inf"):
        raise ValueError(f'{name} is {size!r}, expected a number of bytes or a size such as "6GB"')
    return int(size)


def format_size(size: float) -> str:
    """A size for a message, with three digits: `1.5 GB`, `12.3 MB`, `640 B`; "no limit" for infinity."""
    if size == float("inf"):
        return "no limit"
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size:.0f} B"
