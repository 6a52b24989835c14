"""Every configuration of a Triton kernel, forced in turn.

A module of `fastrlhf/kernels/triton/` whose kernel has tile sizes to choose holds them in `CONFIGS`, a list of
meta-parameters (`{"BLOCK": 1024, "num_warps": 4}`), and returns one of them from `choose_config`, which its launcher
calls. Two kernels with a table each are two modules.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

from fastrlhf.kernels import triton as package
from fastrlhf.kernels.dispatch import OPERATIONS


def modules(operation: str = "") -> list[ModuleType]:
    """The Triton modules of `operation` (of all without): `<operation>.py` and `<operation>_*.py`, less those that an
    operation of a longer name has."""
    if importlib.util.find_spec("triton") is None:
        return []
    names = [module.name for module in pkgutil.iter_modules([str(Path(package.__file__).parent)])]
    return [
        importlib.import_module(f"{package.__name__}.{name}")
        for name in names
        if not operation or _owner(name) == operation
    ]


def _owner(name: str) -> str:
    """The operation that the module `name` belongs to, or nothing."""
    owners = [owner for owner in OPERATIONS if name == owner or name.startswith(f"{owner}_")]
    return max(owners, key=len, default="")


def every_config(operation: str) -> list[tuple[ModuleType, dict]]:
    """Each configuration of each Triton module of `operation`, with its module."""
    return [(module, config) for module in modules(operation) for config in getattr(module, "CONFIGS", [])]


def config_id(choice: tuple[ModuleType, dict]) -> str:
    """What a test of this configuration is called, such as `gae-BLOCK=64-num_warps=1`."""
    module, config = choice
    return "-".join(
        [module.__name__.rpartition(".")[2], *(f"{key}={value}" for key, value in config.items())]
    )


@contextmanager
def forced_config(module: ModuleType, config: dict) -> Iterator[None]:
    """In the block the launcher of `module` takes `config`, whatever the shape."""
    with patch.object(module, "choose_config", lambda *args, **kwargs: config):
        yield
