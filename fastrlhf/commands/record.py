"""What made a run's results, written beside them: the resolved options, versions and the commit."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from pathlib import Path
from typing import Any

import yaml

RECORD = "run.yaml"
PACKAGES = (
    "fastrlhf",
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "datasets",
    "peft",
    "tokenizers",
    "numpy",
)


def write_record(folder: Path, options: dict[str, Any], args: Any) -> Path:
    """Write `run.yaml`.

    Args:
        options: what was asked for, beside the configuration.
        args: the configuration, with every default.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {
        "options": options,
        "configuration": json.loads(args.to_json_string()),
        "versions": versions(),
        "commit": commit(Path.cwd()),
    }
    path = folder / RECORD
    path.write_text(yaml.safe_dump(record, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def versions() -> dict[str, str]:
    """Of Python and the packages that decide what a run computes; those that are not installed are left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit(folder: Path) -> str | None:
    """The git commit of a folder, with `-dirty` where tracked files differ from it; None outside of a repository."""

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    head = git("rev-parse", "HEAD")
    return f"{head}-dirty" if head and git("status", "--porcelain", "--untracked-files=no") else head
