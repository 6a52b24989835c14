from __future__ import annotations

import threading
import types
import warnings

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import dispatch

CPU_TENSOR = torch.zeros(2, 3)


@pytest.fixture(autouse=True)
def no_choice_from_outside(monkeypatch):
    """No backend forced by the environment, and nothing remembered from, or left to, other tests."""
    monkeypatch.delenv("FASTRLHF_BACKEND", raising=False)
    caches = (dispatch._missing, dispatch._module, dispatch._say_once, dispatch._from_environment)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def pretend(monkeypatch):
    """Puts an implementation of gae into a backend: `pretend("cpu", serves=..., unavailable=...)`."""

    def put(backend, **functions):
        module = types.ModuleType(f"fastrlhf.kernels.{backend}.gae")
        module.gae = lambda *args: f"{backend} ran"
        vars(module).update(functions)
        modules, missing = dispatch._module, dispatch._missing
        unavailable = functions.get("unavailable", lambda: None)

        def is_it(operation, named):
            return (operation, named) == ("gae", backend)

        monkeypatch.setattr(dispatch, "_module", lambda *key: module if is_it(*key) else modules(*key))
        monkeypatch.setattr(
            dispatch, "_missing", lambda *key: unavailable() if is_it(*key) else missing(*key)
        )

    return put


def chosen(operation="gae", tensor=CPU_TENSOR):
    return dispatch.choose(operation, tensor).__module__


def test_the_table_has_every_operation_by_every_backend():
    cells = dispatch.table()
    assert [(cell.operation, cell.backend) for cell in cells] == [
        (operation, backend) for operation in dispatch.OPERATIONS for backend in dispatch.BACKENDS
    ]
    assert all(cell.reason for cell in cells), "each says that it is ready, or why not"
    assert all(cell.available == (cell.reason == "ready") for cell in cells)
    assert all(cell.available for cell in cells if cell.backend == "reference")


def test_the_table_has_every_registered_operation():
    registered = {
        name.removeprefix("fastrlhf::")
        for name in torch._C._dispatch_get_all_op_names()
        if name.startswith("fastrlhf::")
    }
    assert registered == set(dispatch.OPERATIONS)


def test_every_available_implementation_is_found_and_serves_float32():
    for cell in dispatch.table():
        if cell.available and not (cell.backend in ("triton", "cuda") and not torch.cuda.is_available()):
            device = "cuda" if cell.backend in ("triton", "cuda") else "cpu"
            with kernels.using(cell.backend), warnings.catch_warnings():
                warnings.simplefilter("error")
                module = chosen(cell.operation, CPU_TENSOR.to(device))
            assert module == f"fastrlhf.kernels.{cell.backend}.{cell.operation}"


def test_a_cpu_prefers_the_native_implementation(pretend):
    pretend("cpu")
    assert dispatch.call("gae", CPU_TENSOR) == "cpu ran"


def test_a_device_without_a_column_gets_the_reference(pretend):
    pretend("cpu")
    assert chosen(tensor=torch.zeros(2, 3, device="meta")) == "fastrlhf.kernels.reference.gae"


def test_using_forces_and_restores_also_when_nested_or_left_by_an_error(pretend):
    pretend("cpu")
    with kernels.using("reference"):
        assert chosen() == "fastrlhf.kernels.reference.gae"
        with kernels.using("cpu"):
            assert dispatch.call("gae", CPU_TENSOR) == "cpu ran"
        assert dispatch.forced_backend() == "reference"
        with pytest.raises(ZeroDivisionError), kernels.using("cpu"):
            _ = 1 / 0
        assert dispatch.forced_backend() == "reference"
    assert dispatch.forced_backend() is None
    assert dispatch.call("gae", CPU_TENSOR) == "cpu ran"


def test_using_reaches_other_threads(pretend):
    """On a GPU autograd runs the backward in a thread of its own."""
    pretend("cpu")
    ran = []
    with kernels.using("reference"):
        thread = threading.Thread(target=lambda: ran.append(chosen()))
        thread.start()
        thread.join()
    assert ran == ["fastrlhf.kernels.reference.gae"]


def test_using_reaches_the_public_operation(pretend):
    pretend("cpu", gae=lambda *args: (args[0] + 1, args[0] + 2, torch.ones(3).double()))
    zeros, mask = torch.zeros(2, 3), torch.ones(2, 3).bool()
    assert kernels.gae(zeros, zeros, mask).advantages.eq(1).all()
    with kernels.using("reference"):
        assert kernels.gae(zeros, zeros, mask).advantages.eq(0).all()


def test_the_environment_forces_and_using_overrides_it(monkeypatch, pretend):
    pretend("cpu")
    monkeypatch.setenv("FASTRLHF_BACKEND", "reference")
    assert chosen() == "fastrlhf.kernels.reference.gae"
    with kernels.using("cpu"):
        assert dispatch.call("gae", CPU_TENSOR) == "cpu ran"


def test_an_unknown_backend_is_named_with_those_that_exist(monkeypatch):
    with (
        pytest.raises(
            ValueError, match=r"using\(\): backend 'tpu' is not one of reference, cpu, triton, cuda"
        ),
        kernels.using("tpu"),
    ):
        pass
    monkeypatch.setenv("FASTRLHF_BACKEND", "gpu")
    with pytest.raises(ValueError, match=r"FASTRLHF_BACKEND: backend 'gpu' is not one of"):
        chosen()


@pytest.mark.parametrize(
    ("functions", "reason"),
    [
        ({"serves": lambda tensor: f"no {tensor.dtype}"}, r"no torch\.float32"),
        ({"unavailable": lambda: "no driver"}, "no driver"),
    ],
)
def test_a_forced_backend_that_cannot_serve_falls_to_the_next_and_says_so_once(pretend, functions, reason):
    pretend("triton", **functions)
    with kernels.using("triton"):
        with pytest.warns(RuntimeWarning, match=rf"gae: the triton implementation cannot serve \({reason}\)"):
            first = chosen()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert chosen() == first
    assert first in ("fastrlhf.kernels.cpu.gae", "fastrlhf.kernels.reference.gae")


def test_a_preferred_backend_that_cannot_serve_is_passed_over_in_silence(pretend):
    pretend("cpu", serves=lambda tensor: "no")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() == "fastrlhf.kernels.reference.gae"


def test_nothing_serves(pretend):
    pretend("reference", serves=lambda tensor: "no")
    with pytest.raises(
        RuntimeError, match=r"gae: no implementation serves \['torch\.float32\[2, 3\] on meta'\]"
    ):
        chosen(tensor=torch.zeros(2, 3, device="meta"))


def test_the_table_gives_an_implementations_own_reason(pretend):
    pretend("cuda", unavailable=lambda: "no driver")
    (cell,) = [cell for cell in dispatch.table() if cell[:2] == ("gae", "cuda")]
    assert cell == ("gae", "cuda", False, "no driver", True)
