"""Builds the compiled modules where there are compilers; pyproject.toml says everything else."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

from native_build.build import RECORD, build, write_record  # noqa: E402
from native_build.modules import CPU_SOURCES, CUDA_SOURCES  # noqa: E402


class BuildNative(build_ext):
    """Hands the work to ninja and installs what came out, and a record of what did not."""

    def run(self) -> None:
        libraries, record = build(ROOT, os.environ)
        self._installed: list[str] = []
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            # A library of an earlier build is not left beside a record which says that there is none.
            target.unlink(missing_ok=True)
            if library := libraries.get(extension.name.rpartition(".")[2]):
                self.mkpath(str(target.parent))
                self.copy_file(str(library), str(target))
                self._installed.append(str(target))
        package = Path(self.get_ext_fullpath("fastrlhf.any")).parent
        write_record(record, package)
        self._installed.append(str(package / RECORD))

    def get_outputs(self) -> list[str]:
        return getattr(self, "_installed", [])

    def get_output_mapping(self) -> dict[str, str]:
        return {}


def _extension(name: str, sources: tuple[str, ...]) -> Extension:
    return Extension(name, [f"fastrlhf/csrc/{source}" for source in sources])


setup(
    ext_modules=[_extension("fastrlhf._cpu", CPU_SOURCES), _extension("fastrlhf._cuda", CUDA_SOURCES)],
    cmdclass={"build_ext": BuildNative},
)
