"""Builds and loads the CUDA kernel bodies compiled for the CPU (see cuda_on_cpu.h), and calls them like launchers."""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import subprocess
import sysconfig
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fastrlhf.kernels.ppo_loss_arguments import ppo_loss_arguments
from native_build.ninja_file import Module
from native_build.ninja_file import program as ninja_program
from native_build.ninja_file import write as write_ninja
from native_build.toolchain import Missing, find_cxx, find_nvcc

ROOT = Path(__file__).parents[2]
SUPPORT = ROOT / "tests" / "support"
# This process has AddressSanitizer's library preloaded (see test_cuda_address_sanitizer.py).
ADDRESS = os.environ.get("FASTRLHF_ADDRESS_SANITIZER") == "1"


@functools.cache
def bodies() -> ModuleType:
    """The module of cuda_bodies.cpp, built when its sources changed; skips the test without g++ or CUDA's headers."""
    try:
        import pybind11

        cxx, cuda, ninja = find_cxx(os.environ), cuda_include(), ninja_program(os.environ)
    except (ImportError, Missing) as missing:
        pytest.skip(f"the CUDA bodies cannot be compiled for the CPU: {missing}")
    python = sysconfig.get_paths()["include"]
    flags = ["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-pthread"]
    # the thread sanitizer's calls alone: shared_memory_races.h answers them in place of its library
    flags += ["-fsanitize=address", "-DFASTRLHF_ADDRESS_SANITIZER"] if ADDRESS else ["-fsanitize=thread"]
    flags += [f"-I{ROOT / 'fastrlhf' / 'csrc'}", f"-I{SUPPORT}"]
    flags += [f"-isystem{folder}" for folder in (pybind11.get_include(), python, cuda)]
    module = Module(
        "cuda_bodies", ("cuda_bodies.cpp",), cxx.command, cxx.version, flags, link_flags=["-pthread"]
    )
    folder = ROOT / "build" / ("cuda_on_cpu_address" if ADDRESS else "cuda_on_cpu")
    library = write_ninja([module], SUPPORT, folder, ".so")["cuda_bodies"]
    built = subprocess.run([ninja, "-C", str(folder)], capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout
    spec = importlib.util.spec_from_file_location("cuda_bodies", library)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def cuda_include() -> str:
    """The folder of CUDA's headers. nvcc itself says where it lives, which its link on PATH does not."""
    nvcc = find_nvcc(os.environ)
    command = [*nvcc.command, "--dryrun", "-x", "cu", "-c", os.devnull, "-o", os.devnull]
    told = subprocess.run(command, capture_output=True, text=True, check=False).stderr
    top = re.search(r"^#\$ TOP=(.*)$", told, re.MULTILINE)
    include = Path(top.group(1) if top else Path(nvcc.command[0]).parents[1], "include")
    if not (include / "cuda_bf16.h").exists():
        raise Missing(f"no cuda_bf16.h in {include}")
    return str(include)


def gae(rewards, values, mask, moments_mask, gamma, lam, *, reversed_threads=False):
    """`gae` by the CUDA body; arguments and results as `fastrlhf.kernels.reference.gae`."""
    inputs = [tensor.contiguous() for tensor in (rewards, values, mask, moments_mask)]
    outputs = torch.empty_like(inputs[0]), torch.empty_like(inputs[0]), torch.empty(3, dtype=torch.float64)
    addresses = [tensor.data_ptr() for tensor in (*inputs, *outputs)]
    is_bfloat16 = rewards.dtype == torch.bfloat16
    bodies().gae(is_bfloat16, addresses, *rewards.shape, gamma, gamma * lam, reversed_threads)
    return outputs


def ppo_loss(*args, reversed_threads=False):
    """`ppo_loss` by the CUDA body; arguments and results as `fastrlhf.kernels.reference.ppo_loss`."""
    given = ppo_loss_arguments(*args)
    is_bfloat16 = given.inputs[0].dtype == torch.bfloat16
    bodies().ppo_loss(
        is_bfloat16, given.addresses, given.tokens, given.numbers, given.kl_estimator, reversed_threads
    )
    return given.outputs
