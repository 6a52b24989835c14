"""Times the contenders of each operation in turn: `pytest benchmarks/kernels --benchmark-only`.

`fastrlhf bench kernels` does it in several rounds. FASTRLHF_BENCH_COMPILED=1 adds torch.compile of the plain way,
FASTRLHF_BENCH_ALONE=1 runs the contenders that need a process to themselves, and those only.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest
import torch

from benchmarks.contenders import ALONE, cost_of, names, others_of, read_gbps
from fastrlhf import kernels
from fastrlhf.device.observe import Cost
from fastrlhf.kernels import dispatch
from tests.support.backends import backends_of
from tests.support.memory import allocations


def pytest_generate_tests(metafunc):
    """`contender`: those of the benchmark, then the backends of the module's OPERATION that work here."""
    if "contender" in metafunc.fixturenames:
        alone, compiled = (os.environ.get(f"FASTRLHF_BENCH_{name}") == "1" for name in ("ALONE", "COMPILED"))
        others = others_of(metafunc.function)
        ours = [] if alone else backends_of(metafunc.module.OPERATION)
        if not others.reference:
            ours = [backend for backend in ours if backend.values != ("reference",)]
        metafunc.parametrize("contender", [*names(others, alone=alone, compiled=compiled), *ours])


@pytest.fixture
def device(contender):
    return "cuda" if torch.cuda.is_available() and contender != "cpu" else "cpu"


@pytest.fixture(scope="session")
def bandwidths():
    """GB/s at which each device reads its memory, measured when first asked for."""
    return {}


@pytest.fixture
def measure(benchmark, contender, device, bandwidths, monkeypatch):
    """`measure(case, ours, eager=..., **peers)` times the function whose turn it is, until the device has finished.

    `case` is what the case is called in tables. With the timing go what the case declares to move and compute, the
    memory's bandwidth, and the most that PyTorch's allocator held in one call beyond what the call returns.
    """
    monkeypatch.setattr(dispatch, "_say_once", pytest.skip)

    def run(case, ours, *, eager, **peers):
        ways = {"eager": eager, "compiled": torch.compile(eager), **peers}
        assert contender in ways or contender in dispatch.BACKENDS, f"measure() was not given {contender}"
        way = ways.get(contender, ours)

        def once():
            way()
            if device == "cuda":
                torch.cuda.synchronize()

        benchmark.group = case
        if device not in bandwidths:
            bandwidths[device] = read_gbps(device)
        with kernels.using(contender) if contender in dispatch.BACKENDS else nullcontext():
            once()  # compiles, and fills caches
            cost = Cost() if contender in ("eager", "compiled") else cost_of(once)
            held = None if contender in ALONE else allocations(way)
            benchmark(once)
        benchmark.extra_info.update(
            device=device,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
            bytes=cost.read + cost.written,
            flops=cost.flops,
            temporary_bytes=None if held is None else held.peak - held.kept,
            read_gbps=bandwidths[device],
        )

    return run
