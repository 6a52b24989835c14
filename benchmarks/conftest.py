"""Times the backends of each operation in turn: `pytest benchmarks/kernels --benchmark-only`.

`fastrlhf bench kernels` does it in several rounds. FASTRLHF_BENCH_COMPILED=1 adds torch.compile of the plain way.
"""

from __future__ import annotations

import os
from contextlib import nullcontext

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from tests.support.backends import backends_of


def pytest_generate_tests(metafunc):
    """`contender`: plain PyTorch, compiled if asked for, then the backends of the module's OPERATION that work here."""
    if "contender" in metafunc.fixturenames:
        others = ["plain", "compiled"] if os.environ.get("FASTRLHF_BENCH_COMPILED") == "1" else ["plain"]
        metafunc.parametrize("contender", [*others, *backends_of(metafunc.module.OPERATION)])


@pytest.fixture
def device(contender):
    return "cuda" if torch.cuda.is_available() and contender != "cpu" else "cpu"


@pytest.fixture
def measure(request, benchmark, contender, device, monkeypatch):
    """`measure(plain, ours)` times the one that is the contender's turn, until the device has finished."""
    monkeypatch.setattr(dispatch, "_say_once", pytest.skip)

    def run(plain, ours):
        way = {"plain": plain, "compiled": torch.compile(plain)}.get(contender, ours)

        def once():
            way()
            if device == "cuda":
                torch.cuda.synchronize()

        benchmark.group = request.node.name.replace(f"{contender}-", "")
        benchmark.extra_info.update(device=device, torch=torch.__version__, threads=torch.get_num_threads())
        with kernels.using(contender) if contender in dispatch.BACKENDS else nullcontext():
            once()  # compiles, and fills caches
            benchmark(once)

    return run
