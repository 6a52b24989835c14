"""The build.ninja of the compiled modules: every object in parallel, and nothing twice."""

from __future__ import annotations

import io
import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from native_build.toolchain import Missing


@dataclass
class Module:
    """One shared library: which compiler compiles which sources (relative to csrc/) with which flags."""

    name: str
    sources: tuple[str, ...]
    compiler: tuple[str, ...]
    compiler_version: str
    flags: list[str]
    # nvcc compiles .cu files with these besides.
    cuda_flags: list[str] = field(default_factory=list)
    link_flags: list[str] = field(default_factory=list)
    architectures: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)


def program(env: Mapping[str, str]) -> str:
    """The ninja that came with the Python package, wherever pip put it, else the one on PATH.

    Raises:
        Missing: neither, or the package (which writes the build file) is not there.
    """
    try:
        files = metadata.files("ninja") or []
    except metadata.PackageNotFoundError as error:
        raise Missing("the Python package ninja is not installed") from error
    ours = [
        str(file.locate())
        for file in files
        if file.stem == "ninja" and file.parent.name in ("bin", "Scripts")
    ]
    found = next(
        (path for path in ours if os.access(path, os.X_OK)), shutil.which("ninja", path=env.get("PATH"))
    )
    if found is None:
        raise Missing("the Python package ninja holds no program, and there is none on PATH")
    return found


def write(modules: list[Module], csrc: Path, build: Path, suffix: str) -> dict[str, Path]:
    """Write `build/build.ninja`; returns each module's library. Unchanged content leaves the file alone.

    Each object depends on its headers (the compiler lists them), on its command line and on the compilers' versions.
    """
    from ninja import ninja_syntax

    build.mkdir(parents=True, exist_ok=True)
    versions = build / "compilers.txt"
    _write_if_changed(versions, "".join(f"{m.name}: {m.compiler} {m.compiler_version}\n" for m in modules))

    text = io.StringIO()
    ninja = ninja_syntax.Writer(text, width=110)
    ninja.variable("builddir", _escape(build))
    libraries: dict[str, Path] = {}
    for module in modules:
        compiler = _escape(shlex.join(module.compiler))
        ninja.rule(
            f"compile{module.name}",
            f"{compiler} $flags -MMD -MF $out.d -c $in -o $out",
            depfile="$out.d",
            deps="gcc",
        )
        ninja.rule(
            f"link{module.name}", f"{compiler} -shared $in -o $out {_escape(shlex.join(module.link_flags))}"
        )
        objects = []
        for source in module.sources:
            flags = module.flags + (module.cuda_flags if source.endswith(".cu") else [])
            target = build / module.name / f"{source.replace('/', '_')}.o"
            objects += ninja.build(
                str(target),
                f"compile{module.name}",
                str(csrc / source),
                implicit=[str(versions)],
                variables={"flags": _escape(shlex.join(flags))},
            )
        libraries[module.name] = build / f"{module.name}{suffix}"
        ninja.build(str(libraries[module.name]), f"link{module.name}", objects)
        ninja.build(module.name, "phony", str(libraries[module.name]))
    _write_if_changed(build / "build.ninja", text.getvalue())
    return libraries


def _escape(value: str | Path) -> str:
    return str(value).replace("$", "$$")


def _write_if_changed(path: Path, content: str) -> None:
    if not path.exists() or path.read_text() != content:
        path.write_text(content)
