"""What the compiler makes of the Triton kernels, against tests/gpu_budget.toml; and the instrument itself."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from native_build.toolchain import Missing, find_nvcc
from tests.support import gpu_budget, nvcc_report
from tests.support.gpu_limits import blocks_per_sm

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="the package triton is not installed"
)


def report(*options: str) -> subprocess.CompletedProcess[str]:
    """The report in a process of its own: this one may interpret, and then cannot compile."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-m", "tests.support.compile_report", *options],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@needs_triton
def test_one_launch_of_every_kernel_is_within_its_budget():
    told = report("--quick")
    assert told.returncode == 0, told.stderr


@needs_triton
@pytest.mark.slow
@pytest.mark.timeout(3600)  # seconds for each product's kernel and architecture the first time
def test_every_launch_and_configuration_is_within_its_budget():
    told = report()
    assert told.returncode == 0, told.stderr


@needs_triton
@pytest.mark.slow
def test_each_fault_is_found():
    told = report("--launches", "tests.support.bad_launches")
    faults = dict.fromkeys(line for line in told.stderr.splitlines() if "not in gpu_budget" not in line)
    everywhere = "sm_80, sm_86, sm_89, sm_90, sm_100, sm_120"
    expected = {
        "double_kernel | odd is bound by memory but has no 16-byte loads": everywhere,
        "product_kernel | too much shared memory takes more shared memory than": "sm_86, sm_89, sm_120",
        "product_kernel | too few warps spills": everywhere,
        "product_kernel | too few warps is bound by products but has no tensor-core instructions": "sm_90",
    }
    for fault, archs in expected.items():
        assert any(line.startswith(fault) and line.endswith(f": {archs}") for line in faults), (
            fault,
            told.stderr,
        )
    assert not any("| even" in line or "| fits" in line or "| float32" in line for line in faults), (
        told.stderr
    )
    assert told.returncode == 1


def nvcc_missing() -> str | None:
    try:
        find_nvcc(os.environ)
    except Missing as missing:
        return str(missing)
    return None if shutil.which("c++filt") else "no c++filt on PATH"


@pytest.mark.slow
@pytest.mark.skipif(nvcc_missing() is not None, reason=str(nvcc_missing()))
def test_every_cuda_kernel_is_within_its_budget():
    rows, version = nvcc_report.rows(), find_nvcc(os.environ).version
    assert rows, "ptxas was not understood"
    assert gpu_budget.check(rows, gpu_budget.read(), "nvcc", version) == []


PTXAS = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '_ZN8fastrlhf10gae_kernelIfEEvPKT_' for 'sm_80'
ptxas info    : Function properties for _ZN8fastrlhf10gae_kernelIfEEvPKT_
    16 bytes stack frame, 24 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 38 registers, used 0 barriers, 192 bytes smem, 400 bytes cmem[0]
ptxas info    : Compiling entry function '_ZN8fastrlhf10gae_finishEPKdPdl' for 'sm_90'
ptxas info    : Function properties for _ZN8fastrlhf10gae_finishEPKdPdl
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers
"""


@pytest.mark.skipif(shutil.which("c++filt") is None, reason="no c++filt on PATH")
def test_what_ptxas_says():
    assert nvcc_report.parsed(PTXAS) == [
        ("gae_kernel<float>", 80, {"registers": 38, "spills": 32, "shared": 192}),
        ("gae_finish", 90, {"registers": 32, "spills": 0, "shared": 0}),
    ]


def row(**changes):
    """A kernel on two cards with nothing wrong."""
    return {
        "bound": "matrix",
        "archs": [86, 90],
        "registers": [64, 64],
        "spills": [0, 0],
        "shared": [50_000, 50_000],
        "blocks_per_sm": [2, 4],
        "wide_loads": [4, 4],
        "matrix": ["mma", "wgmma"],
    } | changes


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"shared": [102_000, 102_000]}, "takes more shared memory than a block may have: sm_86"),
        ({"blocks_per_sm": [2, 0]}, "does not fit on a multiprocessor: sm_90"),
        ({"spills": [0, 8]}, "spills: sm_90"),
        (
            {"matrix": ["mma", "mma"]},
            r"no tensor-core instructions \(wgmma on sm_90\): sm_90",
        ),
        ({"matrix": ["", "wgmma"]}, "no tensor-core instructions .*: sm_86"),
        ({"bound": "memory", "wide_loads": [0, 4]}, "no 16-byte loads: sm_86"),
    ],
)
def test_faults(changes, fault):
    assert gpu_budget.faults("k | s", row(), {}) == []
    (found,) = gpu_budget.faults("k | s", row(**changes), {"k | other": "why", "another k": "why"})
    assert re.match(rf"k \| s .*{fault}$", found), found
    fits = "shared" not in changes and "blocks_per_sm" not in changes
    for excused in ("k", "k | s"):
        assert (gpu_budget.faults("k | s", row(**changes), {excused: "why"}) == []) == fits


@pytest.mark.parametrize(
    ("changes", "worse"),
    [
        ({"registers": [64, 65]}, "registers on sm_90 is 65, the budget has 64"),
        ({"spills": [4, 0]}, "spills on sm_86 is 4, the budget has 0"),
        ({"shared": [50_001, 50_000]}, "shared on sm_86 is 50001, the budget has 50000"),
        ({"blocks_per_sm": [1, 4]}, "blocks_per_sm on sm_86 is 1, the budget has 2"),
        ({"wide_loads": [4, 3]}, "wide_loads on sm_90 is 3, the budget has 4"),
        ({"matrix": ["mma", "mma"]}, "matrix on sm_90 is 'mma', the budget has 'wgmma'"),
    ],
)
def test_regressions(changes, worse):
    assert gpu_budget.regressions("k", row(), row()) == []
    assert gpu_budget.regressions("k", row(**changes), row()) == [f"k: {worse}"]
    other = {name: [0, *value] for name, value in row().items() if name not in ("bound", "archs")}
    assert gpu_budget.regressions("k", row(**changes), row(archs=[80, 86, 90], **other)) == [f"k: {worse}"]
    assert gpu_budget.check(
        {"k": row(**changes)}, {"compilers": {"nvcc": "1"}, "reasons": {"k": ""}, "k": row()}, "nvcc", "1"
    )


def test_better_is_no_regression():
    better = row(registers=[32, 32], shared=[0, 0], blocks_per_sm=[9, 9], wide_loads=[5, 5])
    assert gpu_budget.regressions("k", better, row()) == []


def test_the_file_is_read_as_it_was_written(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu_budget, "BUDGET", tmp_path / "budget.toml")
    assert gpu_budget.read() == {"compilers": {}, "reasons": {}}
    budget = {
        "compilers": {"triton": "3.9.0"},
        "reasons": {"k | a": 'for "this"'},
        "k | b": row(),
        "k | a": row(),
    }
    gpu_budget.write(budget)
    assert gpu_budget.read() == budget
    assert list(gpu_budget.kernels(gpu_budget.read())) == ["k | a", "k | b"]


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "threads", "blocks"),
    [
        (80, 32, 0, 256, 8),  # 2,048 threads
        (86, 32, 0, 256, 6),  # 1,536 threads
        (90, 128, 0, 256, 2),  # 65,536 registers
        (90, 129, 0, 256, 1),  # 136 a thread, by the allocation's unit
        (86, 32, 49 * 1024, 128, 2),  # 100 KB, and 1 KB more for each block
        (86, 32, 50 * 1024, 128, 1),
        (86, 32, 99 * 1024, 128, 1),
        (86, 32, 99 * 1024 + 1, 128, 0),
        (89, 16, 0, 32, 24),  # 24 blocks
        (80, 255, 0, 1024, 0),
    ],
)
def test_blocks_on_a_multiprocessor(arch, registers, shared, threads, blocks):
    assert blocks_per_sm(arch, registers, shared, threads) == blocks
