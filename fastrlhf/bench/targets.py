"""What the operations are meant to reach on a CPU: a committed table, and whether a measurement does."""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Two timings of one product differ by this much.
_LEVEL = 0.97
BEST, MEMORY = "best", "temporary_mb"


@dataclass(frozen=True)
class Target:
    """One line of the table.

    Attributes:
        operation, case: which cases it is for; `*` in the case stands for anything.
        against: the contender to be faster than; `best` for the best that is not ours; `temporary_mb` for a bound of
            the memory held at once, in MB.
        target: how many times faster at least, or how many MB at most.
    """

    operation: str
    case: str
    against: str
    target: float

    def covers(self, operation: str, case: str) -> bool:
        pattern = re.escape(self.case).replace(r"\*", ".*")
        return self.operation == operation and re.fullmatch(pattern, case) is not None

    def __str__(self) -> str:
        return f"{self.target:g} MB" if self.against == MEMORY else f"{self.target:g} x {self.against}"


def read_targets(path: Path) -> list[Target]:
    """The lines of a table with the columns operation, case, against, target."""
    with open(path, newline="") as file:
        return [
            Target(line["operation"], line["case"], line["against"], float(line["target"]))
            for line in csv.DictReader(file)
        ]


def targets_of(targets: list[Target], operation: str, case: str) -> list[Target]:
    """The first target of each kind that covers a case: the table goes from the particular to the general."""
    found: dict[str, Target] = {}
    for target in targets:
        if target.covers(operation, case):
            found.setdefault(target.against, target)
    return list(found.values())


def judge(target: Target, reached: float | None) -> str:
    """`met`, `level` (3 % short of it, which two timings of one thing may differ by) or `missed`; `not measured`."""
    if reached is None:
        return "not measured"
    if target.against == MEMORY:
        return "met" if reached <= target.target else "missed"
    if reached >= target.target:
        return "met"
    return "level" if reached >= _LEVEL * target.target else "missed"


def needed_gbps(target: Target, nbytes: int, milliseconds: Mapping[str, float]) -> float | None:
    """The bandwidth at which the bytes of a case would have to move for the target to be met, in GB/s.

    Args:
        nbytes: that the case moves at least.
        milliseconds: what each contender takes, `best` among them.

    Returns:
        None where the target is no speed, or no bytes are known.
    """
    against = milliseconds.get(target.against)
    if against is None or not nbytes:
        return None
    return nbytes / (against / target.target) / 1e6
