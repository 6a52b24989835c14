"""Runs a test that asks for `device` once for each backend of its module's `OPERATION` that works here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import dispatch


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        operation = metafunc.module.OPERATION
        backends = [
            cell.backend for cell in dispatch.table() if cell.operation == operation and cell.available
        ]
        metafunc.parametrize(
            "device",
            [pytest.param(name, marks=pytest.mark.gpu if _on_gpu(name) else ()) for name in backends],
            indirect=True,
        )


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device whose tensors the backend takes; skips where the backend says that it cannot serve."""
    monkeypatch.setattr(dispatch, "_say_once", pytest.skip)
    with kernels.using(request.param):
        yield "cuda" if _on_gpu(request.param) else "cpu"


def _on_gpu(backend: str) -> bool:
    return backend in ("triton", "cuda") and torch.cuda.is_available()
