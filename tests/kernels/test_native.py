from __future__ import annotations

import importlib
import importlib.util
import json

import pytest
import torch

from fastrlhf.kernels import cuda, dispatch, native


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An empty folder in place of the package's own, and no compiled module to be found."""
    forget()
    monkeypatch.setattr(native, "_PACKAGE", tmp_path / "fastrlhf")
    (tmp_path / "fastrlhf").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    yield tmp_path / "fastrlhf"
    forget()


def forget():
    native.missing.cache_clear()
    native.module.cache_clear()


def record(folder, **modules):
    (folder / "_build_info.json").write_text(json.dumps({"modules": modules}))


@pytest.mark.parametrize("name", native.MODULES)
def test_what_was_built_loads(name):
    if not native.build_info(name).get("built"):
        pytest.skip(f"fastrlhf.{name} was not built: {native.missing(name)}")
    assert native.missing(name) is None
    assert native.module(name).__name__ == f"fastrlhf.{name}"


def test_the_reason_is_the_one_that_the_build_recorded(package):
    record(package, _cpu={"built": False, "reason": "no C++ compiler"})
    assert native.missing("_cpu") == "no C++ compiler"
    assert native.missing("_cuda") == "not built (there is no record of a build)"
    with pytest.raises(
        RuntimeError, match=r"fastrlhf\._cpu is not available: no C\+\+ compiler; .* pip install"
    ):
        native.module("_cpu")


@pytest.mark.parametrize("content", [None, "", "{", "{}"])
def test_a_record_that_is_not_there_or_not_whole_is_none(package, content):
    if content is not None:
        (package / "_build_info.json").write_text(content)
    assert native.build_info("_cpu") == {}
    assert native.missing("_cpu") == "not built (there is no record of a build)"


def test_a_module_that_does_not_load_says_why(package, monkeypatch):
    def fail(name):
        raise ImportError("libgomp.so.1: cannot open shared object file")

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(importlib, "import_module", fail)
    assert native.missing("_cpu") == "built, but does not load: libgomp.so.1: cannot open shared object file"


def test_mending_builds_the_source_tree_where_there_is_one(package):
    assert native.mend() == "pip install --no-deps --force-reinstall fastrlhf"
    (package.parent / "setup.py").touch()
    assert native.mend() == f"pip install --no-deps --force-reinstall -e {package.parent}"


def test_the_kernels_run_on_the_threads_of_pytorch():
    if native.missing("_cpu"):
        pytest.skip(native.missing("_cpu"))
    before = torch.get_num_threads()
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            assert native.module("_cpu").max_threads() == count
    finally:
        torch.set_num_threads(before)


def test_cuda_is_unavailable_without_a_device_and_says_so(monkeypatch):
    if native.missing("_cuda"):
        pytest.skip(native.missing("_cuda"))
    if torch.cuda.is_available():
        assert cuda.unavailable() is None
    else:
        assert native.module("_cuda").device_count() == 0
        assert cuda.unavailable() == "built, but there is no CUDA device or driver"


def test_cuda_takes_float32_and_bfloat16_on_a_gpu():
    assert cuda.serves(torch.zeros(1)) == "takes CUDA tensors, not cpu"
    fake = torch._subclasses.FakeTensorMode(allow_non_fake_inputs=True)
    with fake:
        assert cuda.serves(torch.empty(1, device="cuda", dtype=torch.bfloat16)) is None
        assert cuda.serves(torch.empty(1, device="cuda")) is None
        reason = cuda.serves(torch.empty(1, device="cuda", dtype=torch.float16))
    assert reason == "takes float32 and bfloat16, not float16"


def test_the_table_tells_both_backends():
    cells = {(cell.operation, cell.backend): cell for cell in dispatch.table()}
    for operation in ("gae", "ppo_loss"):
        assert cells[operation, "cpu"].available == (native.missing("_cpu") is None)
        assert cells[operation, "cuda"].available == (cuda.unavailable() is None)
