"""The committed budget of the GPU kernels, `tests/gpu_budget.toml`, and what is held against it.

One table a kernel as it is launched, one list a property with an entry for each of its `archs`. The table "reasons" is
written by hand and kept: under a kernel's name, or the beginning of it up to a bar, stands what excuses its spills, or
loads and products that are not what its `bound` asks for.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

from tests.support.gpu_limits import CARDS

BUDGET = Path(__file__).parents[1] / "gpu_budget.toml"

# Worse is: more of these, fewer of those.
COSTS = ("registers", "spills", "shared")
GAINS = ("blocks_per_sm", "wide_loads")
_NO_KERNELS = ("compilers", "reasons")
PROPERTIES = (*COSTS, *GAINS, "matrix")

HEADER = """\
# What the compilers make of each GPU kernel: registers of a thread, bytes that it spills, bytes of shared memory of a
# block, the blocks that then fit on a multiprocessor, 16-byte loads in the code, and the instructions that multiply
# matrices. Rewritten by `python -m tests.support.compile_report --write`, which keeps the reasons.
"""


def read() -> dict[str, Any]:
    """The budget: "compilers" with their versions, "reasons", and kernels under their names."""
    return {"compilers": {}, "reasons": {}} | (tomllib.loads(BUDGET.read_text()) if BUDGET.exists() else {})


def kernels(budget: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The kernels' tables alone."""
    return {name: table for name, table in budget.items() if name not in _NO_KERNELS}


def write(budget: dict[str, Any]) -> None:
    """Write the budget, its kernels in the order of their names."""
    tables = {name: budget[name] for name in _NO_KERNELS} | dict(sorted(kernels(budget).items()))
    lines = [HEADER.rstrip()]
    for name, table in tables.items():
        lines += ["", f"[{_key(name)}]", *(f"{_key(key)} = {_toml(value)}" for key, value in table.items())]
    BUDGET.write_text("\n".join(lines) + "\n")


def faults(name: str, row: dict[str, Any], reasons: dict[str, str]) -> list[str]:
    """What is wrong with a kernel whatever its budget: it does not fit, or needs a reason and has none."""
    on = list(zip(row["archs"], *(row[key] for key in PROPERTIES), strict=True))
    wrong = {
        "takes more shared memory than a block may have": [
            arch for arch, _, _, shared, *_ in on if shared > CARDS[arch].shared_per_block
        ],
        "does not fit on a multiprocessor": [arch for arch, *_, blocks, _, _ in on if not blocks],
    }
    if not any(f"{name} |".startswith(f"{excused} |") for excused in reasons):
        wrong |= {
            "spills, for no reason given": [arch for arch, _, spills, *_ in on if spills],
            "is bound by memory but has no 16-byte loads, for no reason given": [
                arch for arch, *_, wide, _ in on if row["bound"] == "memory" and not wide
            ],
            "is bound by products but has no tensor-core instructions (wgmma on sm_90), for no reason given": [
                arch
                for arch, *_, matrix in on
                if row["bound"] == "matrix" and (matrix != "wgmma" if arch == 90 else not matrix)
            ],
        }
    return [
        f"{name}: {fault}: {', '.join(f'sm_{arch}' for arch in archs)}"
        for fault, archs in wrong.items()
        if archs
    ]


def regressions(name: str, row: dict[str, Any], allowed: dict[str, Any]) -> list[str]:
    """Where a kernel is worse than its budget, on the architectures that both have."""
    found = []
    for at, arch in enumerate(row["archs"]):
        if arch not in allowed["archs"]:
            continue
        of_budget = allowed["archs"].index(arch)
        for key in PROPERTIES:
            now, before = row[key][at], allowed[key][of_budget]
            if now > before if key in COSTS else now < before if key in GAINS else now != before:
                found.append(f"{name}: {key} on sm_{arch} is {now!r}, the budget has {before!r}")
    return found


def _key(key: str) -> str:
    return key if key.isidentifier() else _toml(key)


def _toml(value: Any) -> str:
    return json.dumps(
        value, ensure_ascii=False
    )  # the strings, numbers and lists of the budget read alike in both
