"""Resident memory of this process, as the operating system counts it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def resident_mb() -> float:
    """Resident memory now, in MB (10^6 bytes); NaN where the system does not say."""
    return _status("VmRSS")


def peak_resident_mb() -> float:
    """The largest resident memory so far, in MB (10^6 bytes)."""
    if sys.platform == "linux":
        return _status("VmHWM")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def _status(field: str) -> float:
    status = Path("/proc/self/status")
    if not status.exists():
        return float("nan")
    line = next(line for line in status.read_text().splitlines() if line.startswith(f"{field}:"))
    return int(line.split()[1]) * 1024 / 1e6
