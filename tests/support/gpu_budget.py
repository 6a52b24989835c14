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
# matrices. Rewritten by `python -m tests.support.compile_report --write` (Triton) and `python -m
# tests.support.nvcc_report --write` (CUDA C++), which keep the reasons.
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


def check(rows: dict[str, dict[str, Any]], budget: dict[str, Any], compiler: str, version: str) -> list[str]:
    """Every fault of `rows`, and, where the budget is of the same compiler, every regression and every unknown name."""
    found = []
    for name, row in rows.items():
        found += faults(name, row, budget["reasons"])
        if budget["compilers"].get(compiler) == version:
            found += (
                regressions(name, row, budget[name]) if name in budget else [f"{name}: not in {BUDGET.name}"]
            )
    return found


def faults(name: str, row: dict[str, Any], reasons: dict[str, str]) -> list[str]:
    """What is wrong with a kernel whatever its budget: it does not fit, or needs a reason and has none."""
    found: dict[str, list[int]] = {}
    excused = any(f"{name} |".startswith(f"{beginning} |") for beginning in reasons)
    for arch, now in _by_arch(row).items():
        wrong = {
            "takes more shared memory than a block may have": now["shared"] > CARDS[arch].shared_per_block,
            "does not fit on a multiprocessor": now.get("blocks_per_sm") == 0,
        }
        if not excused:
            bound, matrix = row.get("bound"), now.get("matrix")
            wrong |= {
                "spills": now["spills"] > 0,
                "is bound by memory but has no 16-byte loads": bound == "memory" and not now["wide_loads"],
                "is bound by products but has no tensor-core instructions (wgmma on sm_90)": bound == "matrix"
                and (matrix != "wgmma" if arch == 90 else not matrix),
            }
        for fault in (text for text, is_so in wrong.items() if is_so):
            found.setdefault(fault, []).append(arch)
    return [f"{name} {fault}: {', '.join(f'sm_{arch}' for arch in archs)}" for fault, archs in found.items()]


def regressions(name: str, row: dict[str, Any], allowed: dict[str, Any]) -> list[str]:
    """Where a kernel is worse than its budget, on the architectures that both have."""
    found, before = [], _by_arch(allowed)
    for arch, now in _by_arch(row).items():
        for key, value in now.items() if arch in before else ():
            was = before[arch][key]
            if value > was if key in COSTS else value < was if key in GAINS else value != was:
                found.append(f"{name}: {key} on sm_{arch} is {value!r}, the budget has {was!r}")
    return found


def _by_arch(row: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """A kernel's properties (of a CUDA kernel only those that ptxas tells) for each architecture."""
    keys = [key for key in PROPERTIES if key in row]
    return {arch: {key: row[key][at] for key in keys} for at, arch in enumerate(row["archs"])}


def _key(key: str) -> str:
    return key if key.isidentifier() else _toml(key)


def _toml(value: Any) -> str:
    # the strings, numbers and lists of the budget are written alike in both
    return json.dumps(value, ensure_ascii=False)
