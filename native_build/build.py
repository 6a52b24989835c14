"""Builds what can be built and writes down what could not, and why.

Environment:
    FASTRLHF_CUDA=0       leave the CUDA module out
    FASTRLHF_CUDA_ARCHS   compute capabilities, such as "80;90"
    FASTRLHF_NVCC, CUDA_HOME, CXX   which compilers
    FASTRLHF_BUILD=strict   a module that is asked for and not built is an error (otherwise it is recorded)
"""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from native_build.modules import cpu_module, cuda_module
from native_build.ninja_file import Module, program, write
from native_build.toolchain import Missing

RECORD = "_build_info.json"
_MODULES: dict[str, Callable[[Mapping[str, str], Path, Path], Module]] = {
    "_cpu": cpu_module,
    "_cuda": cuda_module,
}


class BuildFailed(Exception):
    """A module was asked for with FASTRLHF_BUILD=strict and could not be built."""


def build(root: Path, env: Mapping[str, str]) -> tuple[dict[str, Path], dict]:
    """Build the modules of the source tree at `root`.

    Returns:
        the libraries that were built, by module name, and the record for `_build_info.json`.

    Raises:
        BuildFailed: in strict mode, a module that could not be built (one that is switched off is not asked for).
        ValueError: an environment variable is malformed.
    """
    strict = _strict(env)
    started = time.monotonic()
    # One folder for each interpreter and processor, not setuptools' temporary one: a second build finds its objects.
    folder = root / "build" / "native" / f"{sys.implementation.cache_tag}-{platform.machine()}"
    csrc = root / "fastrlhf" / "csrc"
    modules, reasons = [], {}
    for name, describe in _MODULES.items():
        try:
            modules.append(describe(env, csrc, folder))
        except Missing as missing:
            reasons[name] = str(missing)
    libraries = {}
    if modules:
        libraries, failed = _compile(modules, csrc, folder, env)
        reasons |= failed

    record = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "seconds": round(time.monotonic() - started, 1)}
    record["modules"] = {
        name: {"built": name in libraries, "reason": reasons.get(name, "")} for name in _MODULES
    }
    for module in modules:
        record["modules"][module.name] |= {
            "compiler": module.compiler_version,
            "flags": " ".join(module.flags + module.cuda_flags),
            "architectures": module.architectures,
            "notices": module.notices,
        }
    for name, reason in reasons.items():
        print(f"fastrlhf: {name} is not built: {reason}", file=sys.stderr)
        if strict and "FASTRLHF_CUDA=0" not in reason:
            raise BuildFailed(f"FASTRLHF_BUILD=strict, and {name} is not built: {reason}")
    for notice in (notice for module in modules for notice in module.notices):
        print(f"fastrlhf: {notice}", file=sys.stderr)
    return libraries, record


def write_record(record: dict, folder: Path) -> None:
    """Write `_build_info.json` into the package's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _strict(env: Mapping[str, str]) -> bool:
    mode = env.get("FASTRLHF_BUILD", "")
    if mode not in ("", "strict"):
        raise ValueError(f"FASTRLHF_BUILD is {mode!r}, expected strict or nothing")
    return mode == "strict"


def _compile(
    modules: list[Module], csrc: Path, folder: Path, env: Mapping[str, str]
) -> tuple[dict[str, Path], dict[str, str]]:
    """The libraries that could be built, and for the others the compiler's words."""
    try:
        ninja = program(env)
    except Missing as missing:
        return {}, {module.name: str(missing) for module in modules}
    libraries = write(modules, csrc, folder, sysconfig.get_config_var("EXT_SUFFIX"))

    def run(*targets: str) -> subprocess.CompletedProcess[str]:
        command = [ninja, "-C", str(folder), "-k", "0", *targets]
        done = subprocess.run(command, capture_output=True, text=True, env=dict(env))
        with open(folder / "build.log", "a") as log:
            log.write(done.stdout + done.stderr)
        return done

    (folder / "build.log").unlink(missing_ok=True)
    if run().returncode == 0:
        return libraries, {}
    # Ask for each module by itself: what is built costs nothing, and each failure comes with its own output.
    failed = {}
    for module in modules:
        done = run(module.name)
        if done.returncode:
            failed[module.name] = _complaint(done.stdout)
            del libraries[module.name]
    return libraries, failed


def _complaint(output: str) -> str:
    """The lines of a compiler's output that say what is wrong, at most a few."""
    lines = [
        line.strip() for line in output.splitlines() if "error" in line.lower() or "fatal" in line.lower()
    ]
    return "compilation failed: " + " | ".join(lines[:3] or output.splitlines()[-3:])[:600]
