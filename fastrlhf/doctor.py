"""`fastrlhf doctor`: what this machine has, what is missing and why, what that costs and what mends it."""

from __future__ import annotations

import argparse
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from fastrlhf.version import __version__

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from fastrlhf.kernels.dispatch import Availability
    from fastrlhf.kernels.verify import Verdict

PACKAGES = ("torch", "triton", "transformers", "accelerate", "datasets", "peft", "safetensors")

# What a user loses with each module, and what has to be there before building again helps.
MODULES = {
    "_cpu": (
        "on a CPU loss and advantages run in plain PyTorch: the same results, at [64, 512] several and 200 times "
        "slower (docs/performance.md)",
        "a C++ compiler (g++ 9 or newer, or clang++)",
    ),
    "_cuda": (
        "a GPU runs Triton or plain PyTorch in place of the CUDA C++ kernels; nothing without a GPU",
        "nvcc 12 or newer (the CUDA toolkit) and a C++ compiler that it accepts",
    ),
}


def add_doctor(subparsers: argparse._SubParsersAction) -> None:
    """Add the subcommand to the command line."""
    parser = subparsers.add_parser(
        "doctor", help="show versions, devices, compiled modules and which implementation runs each operation"
    )
    parser.add_argument(
        "--verify", action="store_true", help="check every operation on this machine's device against float64"
    )
    parser.add_argument(
        "--device", help="where --verify checks: cuda (the default where there is one) or cpu"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the tables. Returns 1 if `--verify` found a wrong kernel, else 0."""
    from rich.console import Console

    console = Console()
    if args.verify:
        return verify(console, args.device)
    for table in (versions_table(), machine_table(), modules_table(), operations_table()):
        console.print(table)
    return 0


def versions_table() -> Table:
    """The package, Python and the libraries it stands on."""
    table = _table("Versions", "package", "version")
    table.add_row("fastrlhf", __version__)
    table.add_row("python", f"{platform.python_version()} ({sys.platform}, {platform.machine()})")
    for name in PACKAGES:
        table.add_row(name, version_of(name))
    return table


def version_of(package: str) -> str:
    """The installed version of `package`, or "not installed"."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def machine_table() -> Table:
    """The processor with its vectors and threads, and the GPUs."""
    import torch

    from fastrlhf.kernels import native

    table = _table("Machine", "part", "what it is")
    table.add_row("CPU", f"{cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used")
    ours = "" if native.missing("_cpu") else f", fastrlhf: {native.module('_cpu').simd()}"
    table.add_row("CPU vectors", f"PyTorch: {torch.backends.cpu.get_cpu_capability()}{ours}")
    table.add_row("GPU", "\n".join(gpu_names()) or "none that PyTorch sees")
    return table


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's model name where the system tells it, else its architecture."""
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def gpu_names() -> list[str]:
    """One line for each GPU: its name, memory and compute capability."""
    import torch

    lines = []
    for index in range(torch.cuda.device_count()):
        gpu = torch.cuda.get_device_properties(index)
        lines.append(
            f"cuda:{index} {gpu.name}, {gpu.total_memory / 2**30:.0f} GiB, sm_{gpu.major}{gpu.minor}"
        )
    return lines


def modules_table() -> Table:
    """The compiled modules: there or not and why; what is lost without, and the way to get it."""
    from fastrlhf.kernels import cuda, native

    table = _table("Compiled modules", "module", "state", "details")
    for name, (cost, need) in MODULES.items():
        info, reason = native.build_info(name), native.missing(name)
        if reason is not None:
            details = [f"why: {_plain(reason)}", f"cost: {cost}", f"mend: {_plain(_mend(reason, need))}"]
            table.add_row(name, "[yellow]missing[/yellow]", "\n".join(details))
            continue
        details = [info.get("compiler", "no record of the build")]
        if archs := info.get("architectures"):
            details.append("for " + ", ".join(f"sm_{arch}" for arch in archs))
        details += info.get("notices", [])
        if name == "_cuda" and (idle := cuda.unavailable()):
            details.append(f"not used here: {idle}")
        table.add_row(name, "[green]ready[/green]", _plain("\n".join(details)))
    return table


def _mend(reason: str, need: str) -> str:
    from fastrlhf.kernels import native

    first = "unset FASTRLHF_CUDA" if "FASTRLHF_CUDA=0" in reason else f"provide {need}"
    return f"{first}, then\n  {native.mend()}"


def operations_table() -> Table:
    """Operation by backend, with the reason of each gap, and what runs for float32 on this machine's devices.

    A backend that cannot run here at all has its reason below the table once, and a dash where there is a kernel.
    """
    import torch

    from fastrlhf.kernels import dispatch

    devices = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    runs = [f"float32 on {device} runs" for device in devices]
    idle = {name: why for name in dispatch.BACKENDS if (why := dispatch.backend_unavailable(name))}
    table = _table("Operations", "operation", *dispatch.BACKENDS, *runs, show_lines=False)
    cells = {(cell.operation, cell.backend): cell for cell in dispatch.table()}
    for operation in dispatch.OPERATIONS:
        row = [cells[operation, backend] for backend in dispatch.BACKENDS]
        chosen = [running(operation, device) for device in devices]
        table.add_row(
            operation,
            *(_state(cell, cell.backend in idle) for cell in row),
            *(f"[bold]{name}[/bold]" for name in chosen),
        )
    table.caption = _plain("\n".join(f"{name}: {why}" for name, why in idle.items())) or None
    table.caption_justify = "left"
    return table


def _state(cell: Availability, idle: bool) -> str:
    """What a cell of the table says: ready, why not, or a dash for a kernel whose whole backend is idle."""
    if cell.available:
        return "[green]ready[/green]"
    return "-" if idle and cell.written else _plain(cell.reason)


def running(operation: str, device: str) -> str:
    """The backend that would run `operation` for float32 tensors on `device`."""
    import torch

    from fastrlhf.kernels import dispatch

    chosen = dispatch.choose(operation, torch.empty(0, device=device))
    return chosen.__module__.split(".")[-2]


def verify(console: Console, device: str | None) -> int:
    """Check every operation by every backend that works here, and print the worst errors. Returns 1 if one is wrong."""
    import torch

    from fastrlhf.kernels import dispatch
    from fastrlhf.kernels.first_use import remember
    from fastrlhf.kernels.verify import verify as verify_kernel

    where = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if where.type == "cuda":
        where = torch.device("cuda", where.index or 0)
        if where.index >= torch.cuda.device_count():
            console.print(f"{where} is not there: PyTorch sees {torch.cuda.device_count()} GPUs")
            return 1
    title = f"Worst error on {where}, as a share of what is allowed (more than 1 is wrong)"
    table = _table(title, "operation", *dispatch.BACKENDS)
    wrong = []
    for operation in dispatch.OPERATIONS:
        cells = []
        for backend in dispatch.BACKENDS:
            verdict = verify_kernel(operation, backend, where)
            if where.type == "cuda" and verdict.worst is not None:
                remember(verdict, where)
            if verdict.wrong:
                wrong.append(f"{operation} ({backend}): {verdict}")
            cells.append(_verdict_cell(verdict))
        table.add_row(operation, *cells)
    console.print(table)
    if wrong:
        console.print("[red]wrong:[/red]", *(f"  {_plain(line)}" for line in wrong), sep="\n")
        return 1
    console.print("every kernel that runs here is right")
    return 0


def _verdict_cell(verdict: Verdict) -> str:
    if verdict.worst is None:
        return ""
    text = f"{verdict.worst:.2f} ({_plain(verdict.where)})"
    return f"[red]{text}[/red]" if verdict.wrong else text


def _table(title: str, *columns: str, show_lines: bool = True) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", show_lines=show_lines)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _plain(text: str) -> str:
    """`text` with nothing that rich would take for markup (a compiler's message may hold brackets)."""
    from rich.markup import escape

    return escape(text)
