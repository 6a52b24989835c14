"""A run's options: from a YAML file, overridden by flags, with unknown names refused."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml


class OptionError(ValueError):
    """Options cannot be meant; the message names the option, and the nearest right name."""


def read_yaml(path: Path) -> dict[str, Any]:
    """The options in a file.

    Raises:
        OptionError: there is no such file, or it is no YAML with named options.
    """
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise OptionError(f"{path} is not YAML: {error}") from None
    if options is not None and not isinstance(options, dict):
        raise OptionError(f"{path} holds a {type(options).__name__}, expected `name: value` lines")
    return options or {}


def read_flags(flags: Sequence[str]) -> dict[str, Any]:
    """Options of a command line: `--name value`, `--name=value`, and `--name` alone for true. Values are YAML, and
    dashes in names are underscores.

    Raises:
        OptionError: a word that is no flag's, or a value that is no YAML.
    """
    options: dict[str, Any] = {}
    words = list(flags)
    while words:
        word = words.pop(0)
        if not word.startswith("--"):
            raise OptionError(f"{word!r} stands where a flag is expected: write --name value")
        name, equals, value = word[2:].partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "true"
        try:
            options[name.replace("-", "_")] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise OptionError(f"--{name}: {value!r} is not YAML: {error}") from None
    return options


def check_names(options: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise OptionError where an option has a name that is not known; the message gives the nearest."""
    for name in options:
        if name not in known:
            nearest = difflib.get_close_matches(str(name), known, n=1)
            meant = f"did you mean {nearest[0]!r}?" if nearest else "`fastrlhf init` prints all names"
            raise OptionError(f"{name!r} is no option: {meant}")


def typed(config: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers that YAML reads as texts (`1e-5` needs a point there) made into those that the fields want.

    Raises:
        OptionError: a text where a number is wanted.
    """
    hints = typing.get_type_hints(config)
    return {name: _number(name, value, hints.get(name)) for name, value in options.items()}


def fields_of(config: type) -> list[dataclasses.Field]:
    """The fields that an option can set."""
    return [item for item in dataclasses.fields(config) if item.init]


def _number(name: str, value: Any, hint: Any) -> Any:
    kinds = set(typing.get_args(hint)) or {hint}
    if not isinstance(value, str) or str in kinds:
        return value
    for kind in (float, int):
        if kind in kinds:
            try:
                return kind(value)
            except ValueError:
                raise OptionError(f"{name} is {value!r}, expected a number") from None
    return value
