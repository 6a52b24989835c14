"""Times the backends of each operation in turn: `pytest benchmarks/kernels --benchmark-only`."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import dispatch


def pytest_generate_tests(metafunc):
    """`contender`: plain PyTorch, then each backend of the module's OPERATION that works on this machine."""
    if "contender" in metafunc.fixturenames:
        operation = metafunc.module.OPERATION
        cells = [cell for cell in dispatch.table() if cell.operation == operation and cell.available]
        metafunc.parametrize("contender", ["plain", *(cell.backend for cell in cells)])


@pytest.fixture
def device(contender):
    return "cuda" if torch.cuda.is_available() and contender != "cpu" else "cpu"


@pytest.fixture
def measure(request, benchmark, contender, device, monkeypatch):
    """`measure(plain, ours)` times the one that is the contender's turn, until the device has finished."""
    monkeypatch.setattr(dispatch, "_say_once", pytest.skip)

    def run(plain, ours):
        def once():
            (plain if contender == "plain" else ours)()
            if device == "cuda":
                torch.cuda.synchronize()

        benchmark.group = request.node.name.replace(f"{contender}-", "")
        benchmark.extra_info.update(device=device, torch=torch.__version__, threads=torch.get_num_threads())
        if contender == "plain":
            benchmark(once)
        else:
            with kernels.using(contender):
                benchmark(once)

    return run
