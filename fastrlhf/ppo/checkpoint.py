"""Checkpoints that are whole or not there: written under a temporary name, synced, renamed, and checked when read."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

MANIFEST = "manifest.json"
FORMAT = "fastrlhf-ppo"
VERSION = 1

_NAME = re.compile(r"checkpoint-(\d+)")
_TEMPORARY = re.compile(r"\.checkpoint-\d+\.(\d+)(?:\.old)?\.tmp")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or what was found is not a whole checkpoint of this trainer."""


def save_checkpoint(
    run_dir: Path, step: int, write: Callable[[Path], None], keep_last: int | None = None
) -> Path:
    """Write `run_dir/checkpoint-<step>` so that a kill at any moment leaves the checkpoint before it untouched.

    Args:
        run_dir: the run's directory.
        step: the step that the checkpoint stands for; one that is there already is replaced.
        write: writes every file into the folder that it is given.
        keep_last: how many checkpoints stay; all if None. Older ones go only once the new one is whole.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: the files could not be written (a full disk, say); nothing half-written stays.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    final, temporary = run_dir / f"checkpoint-{step}", run_dir / f".checkpoint-{step}.{os.getpid()}.tmp"
    remove_leftovers(run_dir)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir()
        write(temporary)
        _write_manifest(temporary, step)
        for path in sorted(temporary.rglob("*"), reverse=True):
            _sync(path)
        _sync(temporary)
        _replace(temporary, final)
        _sync(run_dir)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        free = shutil.disk_usage(run_dir).free / 1e6
        raise CheckpointError(
            f"could not write {final} ({type(error).__name__}: {error}; {free:,.0f} MB free); "
            "earlier checkpoints are untouched: free some space or set another output_dir"
        ) from error
    if keep_last is not None:
        for _, old in list(checkpoints(run_dir))[:-keep_last]:
            _discard(old)
    return final


def checkpoints(run_dir: Path) -> Iterator[tuple[int, Path]]:
    """Steps and folders of the checkpoints in a run's directory, oldest first."""
    found = [
        (int(match[1]), path)
        for path in run_dir.glob("checkpoint-*")
        if (match := _NAME.fullmatch(path.name))
    ]
    yield from sorted(found)


def find_checkpoint(run_dir: Path, asked: str | Path | bool) -> Path:
    """The checkpoint to resume from: the one asked for, or for True the newest whole one in `run_dir`.

    Raises:
        CheckpointError: it is not there, or it (for True: every one) is not whole.
    """
    if asked is not True:
        check_checkpoint(Path(asked))
        return Path(asked)
    problems = []
    for _, path in reversed(list(checkpoints(run_dir))):
        try:
            check_checkpoint(path)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return path
    raise CheckpointError("\n".join([f"no whole checkpoint in {run_dir} to resume from", *problems]))


def check_checkpoint(path: Path) -> dict:
    """The manifest of a checkpoint whose files are all there and as they were written.

    Raises:
        CheckpointError: not a folder, not ours, of a later format, or a file is missing, cut short or altered.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder: pass a checkpoint folder, or True for the newest one")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        ours = manifest["format"] == FORMAT
        files, version = manifest["files"], manifest["version"]
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} has no {MANIFEST}: it was not written by fastrlhf's PPOTrainer"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged ({error}): use an earlier checkpoint") from None
    if not ours or version > VERSION:
        raise CheckpointError(
            f"{path} is {manifest['format']} version {version}, expected {FORMAT} {VERSION}"
        )
    for name, digest in files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path} lacks {name}: use an earlier checkpoint")
        if _digest(path / name) != digest:
            raise CheckpointError(f"{path / name} is cut short or altered: use an earlier checkpoint")
    return manifest


def remove_leftovers(run_dir: Path) -> None:
    """Remove what processes that are gone left half-written."""
    for path in run_dir.glob(".checkpoint-*.tmp"):
        match = _TEMPORARY.fullmatch(path.name)
        if match and not _is_alive(int(match[1])):
            shutil.rmtree(path, ignore_errors=True)


def _write_manifest(folder: Path, step: int) -> None:
    files = {
        str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(temporary: Path, final: Path) -> None:
    """Give the new checkpoint its name, in place of an earlier one of the same step."""
    if final.exists():
        _discard(final)
    temporary.rename(final)


def _discard(path: Path) -> None:
    """Remove a checkpoint; its name goes first, so that a kill in between leaves nothing that looks whole."""
    condemned = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    with suppress(FileNotFoundError):
        path.rename(condemned)
    shutil.rmtree(condemned, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
