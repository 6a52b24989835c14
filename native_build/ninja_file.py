"""The build.ninja of the compiled modules: every object in parallel, and nothing twice."""

from __future__ import annotations

import io
import shlex
from dataclasses import dataclass, field
from pathlib import Path


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
