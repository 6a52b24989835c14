"""Functions in processes of their own, which may be killed: forked from a server that has torch imported."""

from __future__ import annotations

import multiprocessing
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["tests.support.tiny"])


def start(function: Callable[..., None], *arguments: Any, stderr: Path | None = None):
    """Start `function(*arguments)`, a module-level function, in a process; its errors go to a file."""
    process = _context.Process(target=_run, args=(function, arguments, stderr), daemon=True)
    process.start()
    return process


def finish(process: Any, seconds: float = 60) -> int:
    """The exit code of a process, negative for a signal; it is killed if it takes longer than it may."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise TimeoutError(f"{process.name} took more than {seconds} s")
    return process.exitcode


def run(function: Callable[..., None], *arguments: Any, stderr: Path | None = None) -> int:
    """Start a function in a process and wait for its exit code."""
    return finish(start(function, *arguments, stderr=stderr))


def _run(function: Callable[..., None], arguments: tuple, stderr: Path | None) -> None:
    import torch

    torch.set_num_threads(1)
    descriptor = os.open(stderr or os.devnull, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    function(*arguments)
