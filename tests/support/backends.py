"""The backends that tests and benchmarks of an operation run on."""

from __future__ import annotations

import os

import pytest
import torch

from fastrlhf.kernels import dispatch, triton

GPU_BACKENDS = ("triton", "cuda")


def on_gpu(backend: str) -> bool:
    """Whether `backend` runs on a GPU here (Triton's interpreter runs on the CPU where there is none)."""
    return backend in GPU_BACKENDS and torch.cuda.is_available()


def marks(backend: str) -> tuple:
    """`gpu` for a backend that runs on a GPU here, or, with FASTRLHF_GPU_CASES=1, would run on one."""
    return (pytest.mark.gpu,) if on_gpu(backend) or (_counting() and backend in GPU_BACKENDS) else ()


def backends_of(operation: str) -> list:
    """Parameters for the backends of `operation` that work here (with FASTRLHF_GPU_CASES=1, or on a GPU), marked."""
    cells = [cell for cell in dispatch.table() if cell.operation == operation]
    return [
        pytest.param(cell.backend, marks=marks(cell.backend))
        for cell in cells
        if cell.available
        or (_counting() and cell.backend in GPU_BACKENDS and dispatch.written(operation, cell.backend))
    ]


def interpreted() -> bool:
    """Whether the operations of a test run in Triton's interpreter, which takes a second for a few rows."""
    return on_triton() and triton.interpreted()


def on_triton() -> bool:
    """Whether the operations of a test run on Triton."""
    return dispatch.forced_backend() == "triton"


def needs_many_rows() -> None:
    """Skip in Triton's interpreter, for a test of what others show by comparison with the reference on few rows."""
    if interpreted():
        pytest.skip("thousands of rows take Triton's interpreter minutes")


def _counting() -> bool:
    """Whether the cases of a GPU are there to be counted, not run."""
    return os.environ.get("FASTRLHF_GPU_CASES") == "1"
