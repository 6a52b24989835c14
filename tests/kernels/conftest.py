"""Runs a test that asks for `device` once for each backend of its module's `OPERATION` that works here, and one that
asks for `triton_config` once for each configuration of its Triton kernels.

Interpreted kernels run with bfloat16 repaired and their bounds checked, and what a launcher allocates is full of NaN.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import dispatch, native, triton
from tests.support.backends import backends_of, marks, on_gpu
from tests.support.configs import config_id, every_config, forced_config
from tests.support.poison import poisoned_memory

if triton.interpreted() and triton.unavailable() is None:
    from tests.support import triton_interpreter

    triton_interpreter.install()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "device" in metafunc.fixturenames:
        metafunc.parametrize("device", backends_of(metafunc.module.OPERATION), indirect=True)
    if "triton_config" in metafunc.fixturenames:
        choices = every_config(metafunc.module.OPERATION)
        metafunc.parametrize(
            "triton_config",
            [pytest.param(choice, marks=marks("triton"), id=config_id(choice)) for choice in choices],
            indirect=True,
        )


@pytest.fixture
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The device whose tensors the backend takes; skips where the backend says that it cannot serve."""
    yield from _run_on(request.param, monkeypatch)


@pytest.fixture
def triton_config(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """As `device` for the Triton backend, whose launcher takes one configuration whatever the shape."""
    if reason := triton.unavailable():
        pytest.skip(reason)
    with forced_config(*request.param):
        yield from _run_on("triton", monkeypatch)


@pytest.fixture(params=["the processor's vectors", "portable"])
def vectors(request: pytest.FixtureRequest) -> Iterator[None]:
    """Both versions of the C++ kernels: the one that this processor gets, and the one for all others."""
    native.module("_cpu").force_portable(request.param == "portable")
    yield
    native.module("_cpu").force_portable(False)


@pytest.fixture(params=["avx512", "avx2", "portable"])
def instructions(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each version that this processor can run of the kernels that have three."""
    module = native.module("_cpu")
    module.force_portable(request.param == "portable")
    module.allow_avx512(request.param == "avx512")
    yield request.param
    module.force_portable(False)
    module.allow_avx512(True)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets the number of threads, and puts it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def _run_on(backend: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(dispatch, "_say_once", pytest.skip)
    with kernels.using(backend), poisoned_memory():
        yield "cuda" if on_gpu(backend) else "cpu"
