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
# Of a manifest; the trainer that wrote it follows.
FORMAT = "fastrlhf-"
VERSION = 1

_NAME = re.compile(r"checkpoint-(\d+)")
_TEMPORARY = re.compile(r"\.checkpoint-(\d+)\.(\d+)(?:\.old)?\.tmp")


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, or what was found is not a whole checkpoint of this trainer."""


def save_checkpoint(
    run_dir: Path,
    step: int,
    write: Callable[[Path], None],
    keep_last: int | None = None,
    *,
    trainer: str = "ppo",
    spared: Path | None = None,
) -> Path:
    """Write `run_dir/checkpoint-<step>` so that a kill at any moment leaves the checkpoint before it untouched.

    Args:
        run_dir: the run's directory.
        step: the step that the checkpoint stands for; one that is there already is replaced.
        write: writes every file into the folder that it is given.
        keep_last: how many checkpoints stay, this one among them; all if None or 0. Older ones go only once the new
            one is whole.
        trainer: whose checkpoint it is; others refuse it.
        spared: a checkpoint that stays beside them (the best one).

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointError: the files could not be written (a full disk, say); nothing half-written stays.
    """
    final, temporary = run_dir / f"checkpoint-{step}", run_dir / f".checkpoint-{step}.{os.getpid()}.tmp"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        clear_leftovers(run_dir)
        temporary.mkdir()
        write(temporary)
        _write_manifest(temporary, step, trainer)
        for path in sorted(temporary.rglob("*"), reverse=True):
            _sync(path)
        _sync(temporary)
        _replace(temporary, final)
        _sync(run_dir)
    except Exception as error:
        shutil.rmtree(temporary, ignore_errors=True)
        with suppress(OSError):
            clear_leftovers(run_dir)
        raise CheckpointError(
            f"could not write {final} ({type(error).__name__}: {error}{_free_space(run_dir)}); "
            "earlier checkpoints are untouched: free some space or set another output_dir"
        ) from error
    if keep_last is not None and keep_last > 0:
        others = [path for _, path in checkpoints(run_dir) if path not in (final, spared)]
        for old in others[: len(others) - (keep_last - 1)]:
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


def find_checkpoint(run_dir: Path, asked: str | Path | bool, trainer: str = "ppo") -> Path:
    """The checkpoint to resume from: the one asked for, or for True the newest whole one in `run_dir`.

    Args:
        trainer: the one that is to have written it.

    Raises:
        CheckpointError: it is not there, or it (for True: every one) is not whole.
    """
    if asked is not True:
        clear_leftovers(Path(asked).parent)
        check_checkpoint(Path(asked), trainer)
        return Path(asked)
    clear_leftovers(run_dir)
    problems = []
    for _, path in reversed(list(checkpoints(run_dir))):
        try:
            check_checkpoint(path, trainer)
        except CheckpointError as error:
            problems.append(str(error))
        else:
            return path
    raise CheckpointError("\n".join([f"no whole checkpoint in {run_dir} to resume from", *problems]))


def check_checkpoint(path: Path, trainer: str | None = None) -> dict:
    """The manifest of a checkpoint whose files are all there and as they were written.

    Args:
        trainer: the one that is to have written it; None: any.

    Raises:
        CheckpointError: not a folder, not ours, of a later format, or a file is missing, cut short or altered.
    """
    if not path.is_dir():
        raise CheckpointError(f"{path} is not a folder: pass a checkpoint folder, or True for the newest one")
    try:
        manifest = json.loads((path / MANIFEST).read_text())
        written_by = str(manifest["format"])
        files, version = dict(manifest["files"]), int(manifest["version"])
    except FileNotFoundError:
        raise CheckpointError(
            f"{path} has no {MANIFEST}: it is not whole, or not written by a trainer of fastrlhf; "
            "pass a checkpoint-<step> folder that it wrote, or True for the newest one"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path / MANIFEST} is damaged ({error}): use an earlier checkpoint") from None
    expected = f"{FORMAT}{trainer or '*'}"
    if not (written_by == expected if trainer else written_by.startswith(FORMAT)) or version > VERSION:
        raise CheckpointError(
            f"{path} is {written_by} version {version}, expected {expected} {VERSION}: read it with the trainer "
            "(and the fastrlhf) that wrote it"
        )
    for name, digest in files.items():
        if not (path / name).is_file():
            raise CheckpointError(f"{path} lacks {name}: use an earlier checkpoint")
        if _digest(path / name) != digest:
            raise CheckpointError(f"{path / name} is cut short or altered: use an earlier checkpoint")
    return manifest


def clear_leftovers(run_dir: Path) -> None:
    """Clear up after processes that were killed while saving.

    A checkpoint that is whole but hidden (the kill came between two renames) gets its name back; the rest is removed.
    """
    for path in sorted(run_dir.glob(".checkpoint-*.tmp")):
        match = _TEMPORARY.fullmatch(path.name)
        if match is None or _is_saving(int(match[2])):
            continue
        final = run_dir / f"checkpoint-{match[1]}"
        try:
            check_checkpoint(path)
            whole = not final.exists()
        except (CheckpointError, OSError):
            whole = False
        if whole:
            path.rename(final)
        else:
            shutil.rmtree(path, ignore_errors=True)


def _write_manifest(folder: Path, step: int, trainer: str) -> None:
    files = {
        str(path.relative_to(folder)): _digest(path) for path in sorted(folder.rglob("*")) if path.is_file()
    }
    manifest = {"format": f"{FORMAT}{trainer}", "version": VERSION, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _replace(temporary: Path, final: Path) -> None:
    """Give the new checkpoint its name. A kill between the renames hides both; `clear_leftovers` brings one back."""
    condemned = _hide(final)
    temporary.rename(final)
    shutil.rmtree(condemned, ignore_errors=True)


def _discard(path: Path) -> None:
    """Remove a checkpoint; its name goes first, so that a kill in between leaves nothing that looks whole."""
    shutil.rmtree(_hide(path), ignore_errors=True)


def _hide(path: Path) -> Path:
    hidden = path.with_name(f".{path.name}.{os.getpid()}.old.tmp")
    with suppress(FileNotFoundError):
        path.rename(hidden)
    return hidden


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_saving(pid: int) -> bool:
    """Whether another process that is alive has this number. (This one saves nothing while it is asked.)"""
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _free_space(folder: Path) -> str:
    try:
        return f"; {shutil.disk_usage(folder).free / 1e6:,.0f} MB free"
    except OSError:
        return ""
