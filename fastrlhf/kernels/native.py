"""Loads the compiled modules, and knows what is missing, why, and what mends it."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType

# Loaded first on purpose: the compiled modules then run on PyTorch's OpenMP threads. With a pool of their own, both
# would spin for the same cores.
import torch  # noqa: F401

MODULES = ("_cpu", "_cuda")
_PACKAGE = Path(__file__).parents[1]


@functools.cache
def module(name: str) -> ModuleType:
    """The compiled module `name`, one of `MODULES`.

    Raises:
        RuntimeError: it is not there; the message says why and what mends it.
    """
    if reason := missing(name):
        raise RuntimeError(f"fastrlhf.{name} is not available: {reason}; to mend it: {mend()}")
    return importlib.import_module(f"fastrlhf.{name}")


@functools.cache
def missing(name: str) -> str | None:
    """Why the compiled module `name` cannot be used, or None when it can."""
    if importlib.util.find_spec(f"fastrlhf.{name}") is None:
        return build_info(name).get("reason") or "not built (there is no record of a build)"
    try:
        importlib.import_module(f"fastrlhf.{name}")
    except ImportError as error:
        return f"built, but does not load: {error}"
    return None


def build_info(name: str) -> dict:
    """What the build recorded of module `name` (see `native_build/build.py`); empty without a record."""
    try:
        record = json.loads((_PACKAGE / "_build_info.json").read_text())
    except (OSError, ValueError):
        return {}
    return record.get("modules", {}).get(name, {})


def mend() -> str:
    """The command that builds the modules again, once the reason is gone."""
    root = _PACKAGE.parent
    source = f"-e {root}" if (root / "setup.py").exists() else "fastrlhf"
    return f"pip install --no-deps --force-reinstall {source}"
