"""Every configuration of a Triton kernel, forced in turn.

A module of `fastrlhf/kernels/triton/` whose kernel has tile sizes to choose holds them in `CONFIGS`, a list (or a dict
with a name for each) of meta-parameters such as `{"BLOCK": 1024, "num_warps": 4}`, and returns one of them from
`choose_config`, which its launcher calls. Two kernels with a choice each are two modules. A module without
`choose_config` has nothing to choose: each of its kernels has one configuration, which every test runs.
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


def modules() -> list[ModuleType]:
    """Every Triton module; none where Triton is not installed."""
    if importlib.util.find_spec("triton") is None:
        return []
    names = [module.name for module in pkgutil.iter_modules([str(Path(package.__file__).parent)])]
    return [importlib.import_module(f"{package.__name__}.{name}") for name in names]


def every_config(operation: str) -> list[tuple[ModuleType, dict]]:
    """Each configuration that the Triton kernels of `operation` choose from, with the module that chooses."""
    return [
        (module, config)
        for module in _modules_of(operation)
        if hasattr(module, "choose_config")
        for config in (module.CONFIGS.values() if isinstance(module.CONFIGS, dict) else module.CONFIGS)
    ]


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


def _modules_of(operation: str) -> list[ModuleType]:
    """`<operation>.py`, and the Triton modules whose functions it and these use."""
    by_name = {module.__name__: module for module in modules()}
    found: dict[str, ModuleType] = {}
    waiting = [f"{package.__name__}.{operation}"]
    while waiting:
        name = waiting.pop()
        if name in by_name and name not in found:
            found[name] = by_name[name]
            used = vars(by_name[name]).values()
            waiting += [value.__name__ if isinstance(value, ModuleType) else _home(value) for value in used]
    return list(found.values())


def _home(value: object) -> str:
    function = getattr(value, "fn", value)  # a kernel holds its function
    return getattr(function, "__module__", None) or ""
