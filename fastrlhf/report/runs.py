"""Runs as a report reads them: what was measured, and what made it."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from fastrlhf.report.metrics import read_metrics

METRICS, STATE, RECORD = "metrics.jsonl", "trainer_state.json", "run.yaml"
_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


@dataclass(frozen=True)
class Run:
    """One run.

    Args:
        name: tells it from the others.
        rows: its metrics, as `read_metrics` returns them.
        record: its ``run.yaml``, empty if there is none.
    """

    name: str
    rows: Sequence[Mapping[str, Any]]
    record: Mapping[str, Any] = field(default_factory=dict)


def read_runs(folders: Sequence[str | os.PathLike[str]]) -> list[Run]:
    """The runs in these folders.

    A run has ``metrics.jsonl``, or the ``trainer_state.json`` of transformers, in the folder itself or in its newest
    checkpoint.

    Raises:
        FileNotFoundError: a folder has neither.
        ValueError: a file is damaged; the message names it.
    """
    paths = [Path(folder).absolute() for folder in folders]
    return [Run(name, _rows(path), _record(path)) for name, path in zip(_names(paths), paths, strict=True)]


def _rows(folder: Path) -> list[dict[str, Any]]:
    if (folder / METRICS).is_file():
        return read_metrics(folder / METRICS)
    numbered = [
        (int(found[1]), path) for path in folder.glob("*/") if (found := _CHECKPOINT.fullmatch(path.name))
    ]
    for path in (folder, *(path for _, path in sorted(numbered, reverse=True))):
        if (path / STATE).is_file():
            return _history(path / STATE)
    raise FileNotFoundError(f"{folder} holds no {METRICS} and no {STATE}: pass the output_dir of a run")


def _history(path: Path) -> list[dict[str, Any]]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not JSON ({error}).") from error
    history = state.get("log_history") if isinstance(state, dict) else None
    if not isinstance(history, list) or not all(isinstance(row, dict) for row in history):
        raise ValueError(f"{path}: no log_history.")
    return history


def _record(folder: Path) -> Mapping[str, Any]:
    path = folder / RECORD
    if not path.is_file():
        return {}
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error}).") from error
    return record if isinstance(record, dict) else {}


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many of them as tell the paths apart."""
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [f"{path.name} ({number})" for number, path in enumerate(paths, 1)]
