"""Which compilers this machine has and what they support."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

# Every data-centre and consumer card since Ampere with its own code; later ones start from the PTX of the last.
DEFAULT_ARCHS = "80;86;89;90;100"

_USUAL_NVCC = "/usr/local/cuda/bin/nvcc"


class Missing(Exception):
    """Something the build needs is not on this machine; the message is what the user is told."""


@dataclass(frozen=True)
class Compiler:
    """A command (a list, since CXX may hold `ccache g++`) and the version it reports."""

    command: tuple[str, ...]
    version: str


def find_cxx(env: Mapping[str, str]) -> Compiler:
    """The C++ compiler: CXX, g++, clang++ or c++, whichever comes first.

    Raises:
        Missing: there is none, or CXX names one that does not run.
    """
    if asked := env.get("CXX"):
        command = tuple(shlex.split(asked))
        if shutil.which(command[0], path=env.get("PATH")) is None:
            raise Missing(f"CXX is {asked!r}, which is not a program on this machine")
        return Compiler(command, _version(command))
    for name in ("g++", "clang++", "c++"):
        if found := shutil.which(name, path=env.get("PATH")):
            return Compiler((found,), _version((found,)))
    raise Missing("no C++ compiler (g++ or clang++) on PATH")


def find_nvcc(env: Mapping[str, str]) -> Compiler:
    """The CUDA compiler: FASTRLHF_NVCC, CUDA_HOME/bin, PATH, /usr/local/cuda/bin, whichever is given first.

    Raises:
        Missing: there is none, or FASTRLHF_NVCC names one that is not there.
    """
    if asked := env.get("FASTRLHF_NVCC"):
        if not os.access(asked, os.X_OK):
            raise Missing(f"FASTRLHF_NVCC is {asked!r}, which is not a program on this machine")
        return Compiler((asked,), _version((asked,)))
    places = [
        os.path.join(env["CUDA_HOME"], "bin", "nvcc") if env.get("CUDA_HOME") else None,
        shutil.which("nvcc", path=env.get("PATH")),
        _USUAL_NVCC,
    ]
    for place in places:
        if place and os.access(place, os.X_OK):
            return Compiler((place,), _version((place,)))
    raise Missing("no CUDA compiler (nvcc) in FASTRLHF_NVCC, CUDA_HOME, PATH or /usr/local/cuda")


def parse_archs(text: str) -> list[str]:
    """`"80;90"` or `"80,90"` (or `"8.0 9.0"`) as `["80", "90"]`, in order, each once.

    Raises:
        ValueError: something that is not a compute capability, or nothing at all.
    """
    parts = [part.strip() for part in re.split(r"[;,\s]", text) if part.strip()]
    for part in parts:
        if not re.fullmatch(r"\d{1,2}\.?\d[af]?", part):
            raise ValueError(
                f"FASTRLHF_CUDA_ARCHS is {text!r}, and {part!r} is not a compute capability; expected "
                f"numbers separated by semicolons or commas, such as {DEFAULT_ARCHS!r}"
            )
    if not parts:
        raise ValueError(f"FASTRLHF_CUDA_ARCHS is {text!r}, expected at least one, such as {DEFAULT_ARCHS!r}")
    return list(dict.fromkeys(part.replace(".", "") for part in parts))


def supported_archs(nvcc: Compiler) -> set[str]:
    """The architectures that this nvcc can compile for, without their `a` and `f` variants."""
    listing = _run((*nvcc.command, "--list-gpu-arch")).stdout
    return set(re.findall(r"compute_(\d+)", listing))


def choose_archs(asked: list[str], supported: set[str]) -> tuple[list[str], list[str]]:
    """`asked`, split into what `supported` holds and what it does not."""
    kept = [arch for arch in asked if arch.rstrip("af") in supported]
    return kept, [arch for arch in asked if arch not in kept]


def gencode(archs: list[str]) -> list[str]:
    """nvcc's flags for machine code of each architecture and PTX of the last."""
    flags = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    newest = archs[-1]
    return [*flags, f"-gencode=arch=compute_{newest},code=compute_{newest}"]


def openmp_flags(cxx: Compiler) -> list[str]:
    """`["-fopenmp"]` where that compiles and links; empty (single-threaded kernels) on a plain macOS."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch, "probe.cpp")
        source.write_text("#include <omp.h>\nint main() { return omp_get_max_threads() < 1; }\n")
        flags = ["-fopenmp"]
        probe = _run((*cxx.command, *flags, str(source), "-o", str(Path(scratch, "probe"))), check=False)
    return flags if probe.returncode == 0 else []


def _version(command: tuple[str, ...]) -> str:
    """The line of `--version` that names the version: nvcc's is `release`, a C++ compiler's the first."""
    lines = _run((*command, "--version")).stdout.splitlines() or ["unknown"]
    return next((line for line in lines if "release" in line), lines[0]).strip()


def _run(command: tuple[str, ...], *, check: bool = True) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, check=check, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None) or str(error)
        raise Missing(f"{' '.join(command)} failed: {output.strip()[:500]}") from error
