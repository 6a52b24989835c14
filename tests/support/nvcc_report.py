"""What nvcc makes of the CUDA kernels: registers, spills and static shared memory, held against tests/gpu_budget.toml.

    python -m tests.support.nvcc_report             every kernel, for the cards' architectures that this nvcc knows
    python -m tests.support.nvcc_report --write     rewrites the CUDA kernels' part of the budget; reasons are kept

ptxas tells it while the sources are compiled with the build's own flags. What it said stays in build/nvcc/ until a
source changes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from native_build.modules import CUDA_SOURCES, cuda_module
from native_build.toolchain import find_nvcc, gencode, supported_archs
from tests.support import gpu_budget
from tests.support.gpu_limits import CARDS

ROOT = Path(__file__).parents[2]
CSRC = ROOT / "fastrlhf" / "csrc"
OUTPUT = ROOT / "build" / "nvcc"
PREFIX = "cuda "

_KERNEL = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'.*?"
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def rows() -> dict[str, dict[str, Any]]:
    """Each kernel's table of the budget, under its name without arguments.

    Raises:
        Missing: there is no nvcc, or no host compiler.
    """
    found: dict[str, dict[int, dict[str, int]]] = {}
    for source in CUDA_SOURCES:
        if source.endswith(".cu"):
            for name, arch, numbers in parsed(_ptxas(CSRC / source)):
                found.setdefault(PREFIX + name, {})[arch] = numbers
    return {name: _row(by_arch) for name, by_arch in found.items()}


def parsed(told: str) -> list[tuple[str, int, dict[str, int]]]:
    """Name, architecture and numbers of each kernel in what `ptxas -v` said."""
    names, kernels = [], []
    for kernel in _KERNEL.finditer(told):
        shared = re.search(r"(\d+) bytes smem", kernel["rest"])
        spills = int(kernel["stores"]) + int(kernel["loads"])
        numbers = {
            "registers": int(kernel["registers"]),
            "spills": spills,
            "shared": int(shared[1]) if shared else 0,
        }
        names.append(kernel["name"])
        kernels.append((int(kernel["arch"]), numbers))
    return [(name, *kernel) for name, kernel in zip(_plain_names(names), kernels, strict=True)]


def _row(by_arch: dict[int, dict[str, int]]) -> dict[str, Any]:
    archs = sorted(by_arch)
    columns = {key: [by_arch[arch][key] for arch in archs] for key in gpu_budget.COSTS}
    return {"archs": archs} | columns


def _ptxas(source: Path) -> str:
    """What ptxas says of a source for every architecture, from build/nvcc/ if nothing has changed."""
    compiler, flags = _command()
    inputs = [source, *sorted(CSRC.rglob("*.h")), *sorted(CSRC.rglob("*.cuh"))]
    digest = hashlib.sha256(" ".join([compiler.version, *flags]).encode())
    for path in inputs:
        digest.update(path.read_bytes())
    kept = OUTPUT / f"{source.stem}-{digest.hexdigest()[:16]}.txt"
    if not kept.exists():
        OUTPUT.mkdir(parents=True, exist_ok=True)
        command = [*compiler.command, *flags, "-c", str(source), "-o", str(OUTPUT / f"{source.stem}.o")]
        told = subprocess.run(command, capture_output=True, text=True, check=False)
        if told.returncode:
            raise RuntimeError(f"{source.name}: nvcc failed:\n{told.stderr}")
        kept.write_text(told.stdout + told.stderr)
    return kept.read_text()


@functools.cache
def _command():
    """The compiler and its flags: the build's own, but for the architectures, which are all of `CARDS`."""
    compiler = find_nvcc(os.environ)
    known = supported_archs(compiler)
    archs = [str(arch) for arch in CARDS if str(arch) in known]
    module = cuda_module(
        dict(os.environ) | {"FASTRLHF_CUDA": "1", "FASTRLHF_CUDA_ARCHS": ";".join(archs)}, CSRC, OUTPUT
    )
    return compiler, [*module.flags, *gencode(archs)[:-1], "-Xptxas=-v"]


def _plain_names(mangled: list[str]) -> list[str]:
    """`gae_kernel<float>` of each `_ZN8fastrlhf10gae_kernelIfEE...`."""
    filtered = subprocess.run(
        ["c++filt"], input="\n".join(mangled), capture_output=True, text=True, check=True
    ).stdout
    names = [line.partition("(")[0].removeprefix("void ") for line in filtered.splitlines()]
    return [name.replace("fastrlhf::", "").replace("__nv_bfloat16", "bfloat16") for name in names]


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.nvcc_report", description=__doc__.split("\n")[0]
    )
    parser.add_argument(
        "--write", action="store_true", help="rewrite the CUDA kernels' part of tests/gpu_budget.toml"
    )
    given = parser.parse_args(argv)
    found, budget = rows(), gpu_budget.read()
    version = find_nvcc(os.environ).version
    if given.write:
        budget = {name: table for name, table in budget.items() if not name.startswith(PREFIX)} | found
        budget["compilers"]["nvcc"] = version
        gpu_budget.write(budget)
    for name, row in found.items():
        print(name)
        for at, arch in enumerate(row["archs"]):
            print(f"  sm_{arch:<4}" + "  ".join(f"{key} {row[key][at]}" for key in gpu_budget.COSTS))
    wrong = gpu_budget.check(found, budget, "nvcc", version)
    print(*wrong, sep="\n", file=sys.stderr)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
