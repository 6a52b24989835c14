"""Sizes as people write them."""

from __future__ import annotations

import re

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.IGNORECASE)


def parse_size(name: str, size: str | int) -> int:
    """Bytes: of `512_000_000`, "512MB" (10^6), "512MiB" (2^20), "0.5GB".

    Raises:
        ValueError: it is no size; the message names the argument `name`.
    """
    match = _SIZE.fullmatch(str(size))
    if match is None or match[2].lower() not in _UNITS:
        raise ValueError(f"{name} is {size!r}, expected a number of bytes or a size such as '512MB'")
    return int(float(match[1]) * _UNITS[match[2].lower()])
