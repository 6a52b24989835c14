"""Rewards by name: a reward model's folder, or a function as `module:function` or `file.py:function`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from fastrlhf.commands.options import OptionError

REWARDS = (
    "a reward model (a folder or a name on the hub), a function as `module:function` or `file.py:function`, or a list "
    "of these"
)
_FUNCTION = re.compile(r"(?P<place>.+):(?P<name>[^\W\d]\w*)")


def find_rewards(names: str | list[str], load_model: Callable[[str], Any]) -> list[Any]:
    """The rewards that these names mean.

    Args:
        names: one, or a list of them.
        load_model: makes a reward model of a folder or a name on the hub.

    Raises:
        OptionError: a file, module or function that is not there, cannot be imported or is no function.
    """
    return [_find(name, load_model) for name in (names if isinstance(names, list) else [names])]


def _find(name: Any, load_model: Callable[[str], Any]) -> Any:
    if not isinstance(name, str):
        raise OptionError(f"rewards has {name!r} ({type(name).__name__}), expected {REWARDS}")
    function = _FUNCTION.fullmatch(name)
    if function is None or Path(name).exists():
        return load_model(name)
    module = _imported(function["place"], name)
    found = getattr(module, function["name"], None)
    if callable(found):
        return found
    if found is not None:
        raise OptionError(f"rewards: {name} is a {type(found).__name__}, expected a function")
    there = [each for each, value in vars(module).items() if callable(value) and not each.startswith("_")]
    nearest = difflib.get_close_matches(function["name"], there, n=1)
    meant = f"did you mean {nearest[0]!r}?" if nearest else f"there are {', '.join(there) or 'no functions'}"
    raise OptionError(f"rewards: {function['place']} has no function {function['name']!r}: {meant}")


def _imported(place: str, name: str) -> ModuleType:
    """A module by its name, the working directory's among them, or by its file."""
    path = Path(place)
    is_file = path.suffix == ".py"
    if is_file and not path.is_file():
        raise OptionError(f"rewards: {name}: {place} does not exist")
    folder = str((path.parent if is_file else Path.cwd()).resolve())
    if folder not in sys.path:
        sys.path.append(folder)  # for what it imports from beside it, later too
    try:
        return _of_file(path) if is_file else importlib.import_module(place)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f" ({frame.filename}, line {frame.lineno})" if is_file else ""
        raise OptionError(
            f"rewards: {place} cannot be imported: {type(error).__name__}: {error}{where}"
        ) from None


def _of_file(path: Path) -> ModuleType:
    """The module of a file, made once however many of its functions are rewards."""
    path = path.resolve()
    name = f"_fastrlhf_rewards_of_{path}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # a dataclass looks itself up there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
