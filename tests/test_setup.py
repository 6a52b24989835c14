from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

from native_build import build as builder
from native_build import toolchain
from native_build.modules import CPU_SOURCES, CUDA_SOURCES, cuda_module
from native_build.toolchain import (
    Compiler,
    Missing,
    choose_archs,
    find_cxx,
    find_nvcc,
    gencode,
    parse_archs,
    supported_archs,
)

ROOT = Path(__file__).parents[1]
needs_cxx = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ on PATH")


def program(path: Path, script: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


NVCC = """case "$1" in
--version) echo 'Cuda compilation tools, release 12.4, V12.4.99';;
--list-gpu-arch) printf 'compute_80\\ncompute_90\\n';;
*) echo 'error: -- unsupported GNU version! gcc versions later than 13 are not supported!'; exit 1;;
esac"""


@pytest.fixture
def nvcc(tmp_path):
    """A CUDA 12.4 that knows two architectures and likes no host compiler."""
    return program(tmp_path / "toolkit" / "bin" / "nvcc", NVCC)


@pytest.fixture(autouse=True)
def no_cuda_of_this_machine(monkeypatch):
    monkeypatch.setattr(toolchain, "_USUAL_NVCC", "/nowhere/nvcc")


@pytest.fixture
def tree(tmp_path):
    """A source tree with the sources' names and nothing but a comment inside."""
    csrc = tmp_path / "tree" / "fastrlhf" / "csrc"
    for source in (*CPU_SOURCES, *CUDA_SOURCES):
        (csrc / source).parent.mkdir(parents=True, exist_ok=True)
        (csrc / source).write_text("// nothing\n")
    return tmp_path / "tree"


def env(**values: object) -> dict[str, str]:
    """This process's environment without what steers a build, and with `values`."""
    steering = ("CXX", "CUDA_HOME", "FASTRLHF_NVCC", "FASTRLHF_CUDA", "FASTRLHF_CUDA_ARCHS", "FASTRLHF_BUILD")
    kept = {name: value for name, value in os.environ.items() if name not in steering}
    return kept | {name: str(value) for name, value in values.items()}


# Architectures


@pytest.mark.parametrize(
    ("text", "archs"),
    [
        ("80;90", ["80", "90"]),
        ("80,90", ["80", "90"]),
        (" 8.0, 9.0 ", ["80", "90"]),
        ("90a;120f", ["90a", "120f"]),
        ("90;80;90", ["90", "80"]),
        ("100", ["100"]),
    ],
)
def test_architectures_are_read(text, archs):
    assert parse_archs(text) == archs


@pytest.mark.parametrize("text", ["", ";", "sm_80", "80;ninety", "80;-90", "8", "80+PTX", "1234"])
def test_malformed_architectures_are_refused(text):
    with pytest.raises(ValueError, match=r"FASTRLHF_CUDA_ARCHS is .* expected"):
        parse_archs(text)


def test_what_nvcc_does_not_support_is_left_out(nvcc):
    supported = supported_archs(Compiler((str(nvcc),), ""))
    assert supported == {"80", "90"}
    assert choose_archs(["80", "86", "90a", "120"], supported) == (["80", "90a"], ["86", "120"])


def test_machine_code_for_each_and_ptx_of_the_last():
    assert gencode(["80", "90"]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
        "-gencode=arch=compute_90,code=compute_90",
    ]


# Compilers


def test_the_first_nvcc_of_those_named_is_taken(tmp_path, nvcc):
    on_path, in_home = nvcc, program(tmp_path / "home" / "bin" / "nvcc", NVCC)
    asked = program(tmp_path / "asked", NVCC)
    names = {"PATH": on_path.parent, "CUDA_HOME": tmp_path / "home", "FASTRLHF_NVCC": asked}
    for expected, removed in ((asked, "FASTRLHF_NVCC"), (in_home, "CUDA_HOME"), (on_path, "PATH")):
        found = find_nvcc({name: str(value) for name, value in names.items()})
        assert found == Compiler((str(expected),), "Cuda compilation tools, release 12.4, V12.4.99")
        del names[removed]
    with pytest.raises(Missing, match=r"no CUDA compiler \(nvcc\)"):
        find_nvcc({"PATH": "/nowhere"})


def test_the_usual_place_of_nvcc_is_the_last_resort(nvcc, monkeypatch):
    monkeypatch.setattr(toolchain, "_USUAL_NVCC", str(nvcc))
    assert find_nvcc({"PATH": "/nowhere"}).command == (str(nvcc),)


def test_a_compiler_that_is_asked_for_and_not_there_is_missing():
    with pytest.raises(Missing, match=r"FASTRLHF_NVCC is '/nowhere/nvcc'"):
        find_nvcc(env(FASTRLHF_NVCC="/nowhere/nvcc"))
    with pytest.raises(Missing, match=r"CXX is 'nowhere"):
        find_cxx(env(CXX="nowhere -m64"))


def test_cxx_may_hold_arguments(tmp_path):
    wrapper = program(tmp_path / "ccache", "echo 'ccache g++ 12'")
    assert find_cxx(env(CXX=f"{wrapper} g++")) == Compiler((str(wrapper), "g++"), "ccache g++ 12")


def test_without_any_compiler_that_is_the_reason():
    with pytest.raises(Missing, match=r"no C\+\+ compiler"):
        find_cxx(env(PATH="/nowhere"))


def test_a_compiler_that_does_not_run_is_missing(tmp_path):
    broken = program(tmp_path / "bin" / "g++", "echo no licence >&2; exit 1")
    with pytest.raises(Missing, match="no licence"):
        find_cxx(env(PATH=broken.parent))


@needs_cxx
def test_openmp_is_left_out_where_it_does_not_compile(tmp_path, tree):
    script = 'for a in "$@"; do [ "$a" = -fopenmp ] && exit 1; done\nexec g++ "$@"'
    plain = program(tmp_path / "plain-clang", script)
    libraries, record = builder.build(tree, env(CXX=plain, FASTRLHF_CUDA=0))
    assert libraries["_cpu"].exists()
    assert "-fopenmp" not in record["modules"]["_cpu"]["flags"]
    assert record["modules"]["_cpu"]["notices"] == [
        f"{plain} has no OpenMP: the CPU kernels run on one thread"
    ]


@needs_cxx
def test_the_cuda_module_says_which_architectures_it_leaves_out(nvcc, tmp_path):
    module = cuda_module(env(FASTRLHF_NVCC=nvcc, FASTRLHF_CUDA_ARCHS="80;90;120"), tmp_path, tmp_path)
    assert module.architectures == ["80", "90"]
    assert len(module.notices) == 1 and "does not support 120" in module.notices[0]
    with pytest.raises(Missing, match="supports none of the architectures 120, 121"):
        cuda_module(env(FASTRLHF_NVCC=nvcc, FASTRLHF_CUDA_ARCHS="120;121"), tmp_path, tmp_path)


# The build


def test_without_compilers_nothing_is_built_and_the_reasons_are_recorded(tree):
    libraries, record = builder.build(tree, env(PATH="/nowhere"))
    assert libraries == {}
    for name in ("_cpu", "_cuda"):
        assert record["modules"][name] == {
            "built": False,
            "reason": "no C++ compiler (g++ or clang++) on PATH",
        }


@needs_cxx
def test_one_module_failing_leaves_the_other(tree, nvcc):
    libraries, record = builder.build(tree, env(FASTRLHF_NVCC=nvcc))
    assert list(libraries) == ["_cpu"] and libraries["_cpu"].exists()
    assert record["modules"]["_cpu"]["built"] and "g++" in record["modules"]["_cpu"]["compiler"]
    cuda = record["modules"]["_cuda"]
    assert not cuda["built"] and "unsupported GNU version" in cuda["reason"]
    assert cuda["architectures"] == ["80", "90"]


@needs_cxx
def test_a_source_that_does_not_compile_is_recorded_and_in_strict_mode_an_error(tree):
    (tree / "fastrlhf" / "csrc" / "cpu" / "gae.cpp").write_text("#error the moon is full\n")
    libraries, record = builder.build(tree, env(FASTRLHF_CUDA=0))
    assert libraries == {} and "the moon is full" in record["modules"]["_cpu"]["reason"]
    with pytest.raises(
        builder.BuildFailed, match=r"_cpu is not built: compilation failed: .*the moon is full"
    ):
        builder.build(tree, env(FASTRLHF_CUDA=0, FASTRLHF_BUILD="strict"))


@needs_cxx
def test_strict_mode_does_not_ask_for_what_is_switched_off(tree):
    libraries, record = builder.build(tree, env(FASTRLHF_CUDA=0, FASTRLHF_BUILD="strict"))
    assert list(libraries) == ["_cpu"]
    assert record["modules"]["_cuda"]["reason"] == "switched off by FASTRLHF_CUDA=0"
    with pytest.raises(builder.BuildFailed, match="_cuda is not built: no CUDA compiler"):
        builder.build(tree, env(FASTRLHF_BUILD="strict", PATH=only("g++", tree.parent / "bin")))


@needs_cxx
def test_a_second_build_does_only_what_has_changed(tree):
    csrc = tree / "fastrlhf" / "csrc"
    (csrc / "cpu" / "gae.cpp").write_text('#include "shared.h"\n')
    (csrc / "cpu" / "shared.h").write_text("// one\n")

    def objects() -> dict[str, int]:
        libraries, _ = builder.build(tree, env(FASTRLHF_CUDA=0))
        return {path.name: path.stat().st_mtime_ns for path in libraries["_cpu"].parent.glob("_cpu/*.o")}

    first = objects()
    assert len(first) == len(CPU_SOURCES)
    assert objects() == first
    (csrc / "cpu" / "shared.h").write_text("// another\n")
    again = objects()
    assert [name for name in first if again[name] != first[name]] == ["cpu_gae.cpp.o"]


def test_without_ninja_that_is_the_reason(tree, monkeypatch):
    def no_files(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", no_files)
    _, record = builder.build(tree, env(FASTRLHF_CUDA=0, CXX=shutil.which("true")))
    assert record["modules"]["_cpu"]["reason"] == "the Python package ninja is not installed"


@pytest.mark.parametrize(
    "values", [{"FASTRLHF_BUILD": "Strict"}, {"FASTRLHF_CUDA": "no"}, {"FASTRLHF_CUDA_ARCHS": "ninety"}]
)
def test_malformed_settings_are_refused_by_name(tree, values):
    ((name, value),) = values.items()
    with pytest.raises(ValueError, match=f"{name} is {value!r}"):
        builder.build(tree, env(**values))


def only(name: str, folder: Path) -> str:
    """A PATH on which of this machine's compilers there is `name` alone, and what it needs to run."""
    folder.mkdir()
    for needed in (name, "as", "ld", "sh"):
        (folder / needed).symlink_to(shutil.which(needed))
    return str(folder)


# The whole way through pip


@pytest.fixture
def copy(tmp_path):
    """A copy of the source tree without what was built in it."""
    leave = shutil.ignore_patterns(
        ".git", ".venv", "build", "dist", "runs", "*.so", "_build_info.json", "*.egg-info"
    )
    return Path(shutil.copytree(ROOT, tmp_path / "copy", ignore=leave))


def wheel(source: Path, out: Path, **values: object) -> zipfile.ZipFile:
    """The wheel that pip builds of `source`."""
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, "--wheel-dir", str(out), str(source)], env=env(**values), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.glob("fastrlhf-*.whl")
    return zipfile.ZipFile(built)


@pytest.mark.slow
def test_pip_installs_without_a_compiler(copy, tmp_path):
    files = wheel(copy, tmp_path / "out", PATH="/nowhere")
    assert not [name for name in files.namelist() if name.endswith(".so")]
    record = json.loads(files.read("fastrlhf/_build_info.json"))
    assert record["modules"]["_cpu"]["reason"] == "no C++ compiler (g++ or clang++) on PATH"


@pytest.mark.slow
@needs_cxx
def test_the_sdist_holds_the_sources_and_its_wheel_the_module(copy, tmp_path):
    command = [sys.executable, "setup.py", "-q", "sdist", "--dist-dir", str(tmp_path / "sdist")]
    subprocess.run(command, cwd=copy, env=env(), check=True, capture_output=True)
    (archive,) = (tmp_path / "sdist").glob("fastrlhf-*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
        files.extractall(tmp_path, filter="data")
    expected = {f"fastrlhf/csrc/{path.name}" for path in (copy / "fastrlhf" / "csrc").glob("*.*")}
    expected |= {f"fastrlhf/csrc/{source}" for source in (*CPU_SOURCES, *CUDA_SOURCES)}
    assert expected <= names
    assert {"native_build/build.py", "fastrlhf/csrc/cuda/gae.cuh", "fastrlhf/csrc/cpu/simd.h"} <= names

    files = wheel(tmp_path / archive.name.removesuffix(".tar.gz"), tmp_path / "out", FASTRLHF_CUDA=0)
    assert [name for name in files.namelist() if name.startswith("fastrlhf/_cpu.") and name.endswith(".so")]
    assert json.loads(files.read("fastrlhf/_build_info.json"))["modules"]["_cpu"]["built"]
