"""The compiled modules: their sources, and the flags for the compilers at hand."""

from __future__ import annotations

import shutil
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from native_build.ninja_file import Module
from native_build.toolchain import (
    DEFAULT_ARCHS,
    Missing,
    choose_archs,
    find_cxx,
    find_nvcc,
    gencode,
    openmp_flags,
    parse_archs,
    supported_archs,
)

CPU_SOURCES = (
    "bindings_cpu.cpp",
    "cpu/adamw.cpp",
    "cpu/attention.cpp",
    "cpu/attention_backward.cpp",
    "cpu/decode_attention.cpp",
    "cpu/decode_program.cpp",
    "cpu/gae.cpp",
    "cpu/glu.cpp",
    "cpu/group_advantages.cpp",
    "cpu/linear.cpp",
    "cpu/linear_logprob.cpp",
    "cpu/linear_logprob_backward.cpp",
    "cpu/matmul.cpp",
    "cpu/norm.cpp",
    "cpu/norm_backward.cpp",
    "cpu/pool.cpp",
    "cpu/ppo_loss.cpp",
    "cpu/quantize.cpp",
    "cpu/rope.cpp",
    "cpu/sample.cpp",
)
CUDA_SOURCES = (
    "bindings_cuda.cpp",
    "cuda/adamw.cu",
    "cuda/adamw_each.cu",
    "cuda/decode_attention.cu",
    "cuda/gae.cu",
    "cuda/group_advantages.cu",
    "cuda/ppo_loss.cu",
    "cuda/quantize.cu",
    "cuda/sample.cu",
)


def cpu_module(env: Mapping[str, str], csrc: Path, build: Path) -> Module:
    """`fastrlhf._cpu`. No -march: the kernels hold an AVX2 and a portable version, and choose at run time.

    Raises:
        Missing: no C++ compiler, or no pybind11.
    """
    cxx = find_cxx(env)
    openmp = openmp_flags(cxx)
    # GCC warns that vectors cross calls differently with and without AVX; ours never cross one, all is inlined.
    flags = [
        "-std=c++17",
        "-O3",
        "-fno-math-errno",
        "-fPIC",
        "-fvisibility=hidden",
        "-Wall",
        "-Wextra",
        "-Wno-psabi",
        *openmp,
    ]
    link = list(openmp)
    if sys.platform == "darwin":
        link += ["-undefined", "dynamic_lookup"]
    return Module(
        "_cpu",
        CPU_SOURCES,
        cxx.command,
        cxx.version,
        flags + _includes(csrc, build),
        link_flags=link,
        notices=[] if openmp else [f"{cxx.command[0]} has no OpenMP: the CPU kernels run on one thread"],
    )


def cuda_module(env: Mapping[str, str], csrc: Path, build: Path) -> Module:
    """`fastrlhf._cuda`. The CUDA runtime is linked statically, so that the module imports without a driver.

    Raises:
        Missing: switched off, no nvcc, no host compiler, or an nvcc that knows none of the architectures asked for.
        ValueError: FASTRLHF_CUDA_ARCHS or FASTRLHF_CUDA is malformed.
    """
    asked = parse_archs(env.get("FASTRLHF_CUDA_ARCHS") or DEFAULT_ARCHS)
    switch = env.get("FASTRLHF_CUDA") or "1"
    if switch not in ("0", "1"):
        raise ValueError(f"FASTRLHF_CUDA is {switch!r}, expected 0 or 1")
    if switch == "0":
        raise Missing("switched off by FASTRLHF_CUDA=0")
    cxx, nvcc = find_cxx(env), find_nvcc(env)
    archs, dropped = choose_archs(asked, supported_archs(nvcc))
    if not archs:
        raise Missing(f"this nvcc ({nvcc.version}) supports none of the architectures {', '.join(asked)}")
    host = ["-ccbin", cxx.command[-1]] if env.get("CXX") else []
    flags = [*host, "-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden"]
    return Module(
        "_cuda",
        CUDA_SOURCES,
        nvcc.command,
        nvcc.version,
        flags + _includes(csrc, build),
        cuda_flags=[*gencode(archs), "-lineinfo", "-Xptxas=-v"],
        link_flags=[*host, "-cudart=static"],
        architectures=archs,
        notices=[f"this nvcc ({nvcc.version}) does not support {', '.join(dropped)}: left out"]
        if dropped
        else [],
    )


def _includes(csrc: Path, build: Path) -> list[str]:
    """Include flags. pybind11's headers are copied: pip's build environment is another folder every time, and a path
    that changes would compile everything again."""
    try:
        import pybind11
    except ImportError as error:
        raise Missing("the Python package pybind11 is not installed") from error
    headers = build / f"pybind11-{pybind11.__version__}"
    shutil.copytree(pybind11.get_include(), headers, dirs_exist_ok=True)
    return [f"-I{csrc}", "-isystem", str(headers), "-isystem", sysconfig.get_paths()["include"]]
