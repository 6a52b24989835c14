"""Compiles the Triton kernels for GPUs that are not there, and holds what the compiler made of them against a budget.

    python -m tests.support.compile_report            every kernel, launch and configuration, for every architecture
    python -m tests.support.compile_report --quick    each kernel once, for the strictest two
    python -m tests.support.compile_report --only gae the launches with this in their name
    python -m tests.support.compile_report --write    rewrites tests/gpu_budget.toml (with --only, those); keeps reasons

The kernels are those that the launchers would launch in `tests/support/launches/`, with the dtypes, alignments and
meta-parameters of a launch. Compiled code stays in build/triton/ until the source of its kernel changes.
"""

from __future__ import annotations

import argparse
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
os.environ.setdefault("TRITON_CACHE_DIR", str(ROOT / "build" / "triton"))

import torch  # noqa: E402
import triton  # noqa: E402
from triton.backends.compiler import GPUTarget  # noqa: E402

from fastrlhf.device.launch import observing_triton  # noqa: E402
from tests.support import gpu_budget, launches  # noqa: E402
from tests.support.configs import every_config, forced_config  # noqa: E402
from tests.support.gpu_limits import CARDS, WARP, blocks_per_sm  # noqa: E402

QUICK_ARCHS = (86, 90)  # the least shared memory, and wgmma
CUOBJDUMP = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"

_WIDE_LOAD = re.compile(
    r"ld\.global[^;\n]*\.(?:v4\.[bfu]32|v2\.[bfu]64|v8\.[bfu]32|v4\.[bfu]64)"
    r"|cp\.async\.c[ag]\.shared\.global[^;\n]*, (?:16|0x10)\b|cp\.async\.bulk\.tensor"
)
_MATRIX = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma": "mma.sync"}
_DOT = re.compile(r"tt\.dot .*: tensor<[0-9x]*x(\w+)> \* ")


class Launch(NamedTuple):
    """One kernel as it is launched. The name is that of its budget."""

    name: str
    kernel: Any
    grid: tuple[int, ...]
    args: tuple[Any, ...]
    meta: dict[str, Any]


class NoGPU:
    """As much of a driver as `JITFunction.warmup` asks for."""

    def __init__(self, arch: int) -> None:
        self.target = GPUTarget("cuda", arch, WARP)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # the kernels that were compiled for one device are not looked for on another

    def get_current_stream(self, device: int) -> int:
        return 0

    def is_active(self) -> bool:
        return True


def recorded(package: ModuleType = launches) -> list[Launch]:
    """Every launch of the package's modules; a configuration that none of them chooses is forced on the first."""
    found: dict[str, Launch] = {}
    for module in pkgutil.iter_modules(package.__path__):
        named = import_module(f"{package.__name__}.{module.name}").LAUNCHES
        for name, function in named.items():
            _record(found, name, function)
        name, function = next(iter(named.items()))
        for owner, config in every_config(module.name):
            if not any(_chooses(launch, owner, config) for launch in found.values()):
                text = " ".join(f"{key}={value}" for key, value in config.items())
                with forced_config(owner, config):
                    _record(found, f"{name} | {text}", function, (owner, config))
    return list(found.values())


def _record(
    found: dict[str, Launch],
    name: str,
    function: Any,
    forced: tuple[ModuleType, dict[str, Any]] | None = None,
) -> None:
    seen: list[tuple[Any, ...]] = []
    with observing_triton(lambda *launch: seen.append(launch)):
        function()
    different = {
        _specialisation(kernel, args, meta): (kernel, grid, args, meta) for kernel, grid, args, meta in seen
    }
    for kernel, grid, args, meta in different.values():
        title, again = f"{kernel.__name__} | {name}", 2
        while title in found:
            title, again = f"{kernel.__name__} | {name} | {again}", again + 1
        launch = Launch(title, kernel, grid, args, meta)
        if forced is None or _chooses(launch, *forced):  # no other kernel of the same launcher
            found[title] = launch


def _specialisation(kernel: Any, args: tuple[Any, ...], meta: dict[str, Any]) -> tuple[Any, ...]:
    """What Triton compiles a kernel anew for: launches in a loop mostly differ by their addresses alone."""
    kinds = [
        (arg.dtype, arg.storage_offset() * arg.itemsize % 16 == 0)
        if isinstance(arg, torch.Tensor)
        else (type(arg), isinstance(arg, int) and (arg % 16 == 0, arg == 1))
        for arg in args
    ]
    return kernel, tuple(kinds), tuple(sorted(meta.items()))


def _chooses(launch: Launch, owner: ModuleType, config: dict[str, Any]) -> bool:
    return launch.kernel.fn.__module__ == owner.__name__ and config.items() <= launch.meta.items()


def one_of_each_kernel(recorded_launches: list[Launch]) -> list[Launch]:
    """The first launch of each kernel."""
    return list({id(launch.kernel): launch for launch in reversed(recorded_launches)}.values())


def compiled_row(launch: Launch, archs: tuple[int, ...]) -> dict[str, Any]:
    """What the compiler makes of a launch for each architecture: a table of the budget without its reason."""
    results = [_compile(launch, arch) for arch in archs]
    row: dict[str, Any] = {"bound": results[0].pop("bound"), "archs": list(archs)}
    return row | {key: [result[key] for result in results] for key in gpu_budget.PROPERTIES}


def _compile(launch: Launch, arch: int) -> dict[str, Any]:
    triton.runtime.driver.set_active(NoGPU(arch))
    compiled = launch.kernel.warmup(*launch.args, grid=launch.grid, **launch.meta)
    registers, stack = _usage(compiled.asm["cubin"])
    shared, threads = compiled.metadata.shared, compiled.metadata.num_warps * WARP
    ptx = compiled.asm["ptx"]
    return {
        "bound": _bound(compiled.asm["ttir"]),
        "registers": registers,
        "spills": stack,
        "shared": shared,
        "blocks_per_sm": blocks_per_sm(arch, registers, shared, threads),
        "wide_loads": len(_WIDE_LOAD.findall(ptx)),
        "matrix": next((name for name, text in _MATRIX.items() if text in ptx), ""),
    }


def _usage(cubin: bytes) -> tuple[int, int]:
    """Registers and bytes of stack of a thread. Nothing of ours has a stack but for what is spilled to it."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [CUOBJDUMP, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    usage = dict(re.findall(r"(REG|STACK):(\d+)", told))
    return int(usage["REG"]), int(usage["STACK"])


def _bound(ttir: str) -> str:
    """What the kernel waits for: "memory", "matrix" products, or those of "float32", which no tensor core does."""
    operands = set(_DOT.findall(ttir))
    return "memory" if not operands else "float32" if operands == {"f32"} else "matrix"


def _written(rows: dict[str, dict[str, Any]], budget: dict[str, Any], only: str) -> dict[str, Any]:
    """The budget with the tables of the Triton kernels whose names hold `only` replaced by `rows`."""
    others = {name: table for name, table in budget.items() if "|" not in name or only not in name}
    return others | {"compilers": budget["compilers"] | {"triton": triton.__version__}} | rows


def _lines(name: str, row: dict[str, Any]) -> Iterator[str]:
    yield f"{name} ({row['bound']})"
    for at, arch in enumerate(row["archs"]):
        yield f"  sm_{arch:<4}" + "  ".join(f"{key} {row[key][at]}" for key in gpu_budget.PROPERTIES)


def main(argv: list[str] | None = None) -> int:
    """Exit status 1 if anything is wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.compile_report", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--quick", action="store_true", help="each kernel once, for two architectures")
    parser.add_argument("--write", action="store_true", help="rewrite tests/gpu_budget.toml")
    parser.add_argument("--only", default="", metavar="TEXT", help="the launches with this in their name")
    parser.add_argument("--launches", default=launches.__name__, help="the package of launches")
    given = parser.parse_args(argv)
    if os.environ.get("TRITON_INTERPRET") == "1":
        parser.error("a process with TRITON_INTERPRET=1 cannot compile")
    chosen = recorded(import_module(given.launches))
    chosen = one_of_each_kernel(chosen) if given.quick else chosen
    archs = QUICK_ARCHS if given.quick else tuple(CARDS)
    chosen = [launch for launch in chosen if given.only in launch.name]
    rows = {}
    for launch in chosen:
        rows[launch.name] = compiled_row(launch, archs)
        print(*_lines(launch.name, rows[launch.name]), sep="\n", flush=True)
    budget = gpu_budget.read()
    if given.write:
        budget = _written(rows, budget, given.only)
        gpu_budget.write(budget)
    found = gpu_budget.check(rows, budget, "triton", triton.__version__)
    print(*found, sep="\n", file=sys.stderr)
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
