"""A kernel's first use on a GPU: it proves itself once for each version and card, or is not used there.

Verdicts are remembered in the user's cache folder (`verified.json`), and renewed by `fastrlhf doctor --verify`.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import tempfile
import warnings
from pathlib import Path

import torch

from fastrlhf.cache import cache_dir
from fastrlhf.kernels.verify import Verdict, verify
from fastrlhf.version import __version__

_PACKAGE = Path(__file__).parent
_UNKNOWN = object()
_verdicts: dict[tuple[str, str, torch.device], str | None] = {}


def unproved(operation: str, backend: str, device: torch.device) -> str | None:
    """Why the kernel of `backend` must not be used on a GPU: its cases failed there. None where they did not.

    The first call takes as long as compiling and running the cases; the next ones take nothing.
    """
    known = _verdicts.get((operation, backend, device), _UNKNOWN)
    if known is not _UNKNOWN:
        return known
    if torch.cuda.is_current_stream_capturing():
        return None  # a graph is captured after warm-up calls, and those were the first use
    return _verdicts.setdefault((operation, backend, device), _first_use(operation, backend, device))


def remember(verdict: Verdict, device: torch.device) -> None:
    """Keep a verdict in the cache; a folder that cannot be written is no error, and the kernel is tried again."""
    path = _path()
    reasons = _read() | {
        _key(verdict.operation, verdict.backend, device): str(verdict) if verdict.wrong else None
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(reasons, file, indent=1)
        os.replace(file.name, path)
    except OSError:
        return


def _first_use(operation: str, backend: str, device: torch.device) -> str | None:
    remembered, key = _read(), _key(operation, backend, device)
    if key in remembered:
        reason = remembered[key]
    else:
        verdict = verify(operation, backend, device)
        remember(verdict, device)
        reason = str(verdict) if verdict.wrong else None
    if reason:
        warnings.warn(
            f"{operation}: the {backend} kernel is wrong on this {_card(device)} ({reason}), and the next "
            "implementation runs in its place. Please report this with the output of `fastrlhf doctor --verify`",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason


def _key(operation: str, backend: str, device: torch.device) -> str:
    """What a verdict holds for."""
    versions = [f"fastrlhf {__version__}", f"torch {torch.__version__}", f"triton {_triton_version()}"]
    return ", ".join([operation, backend, _card(device), *versions, _written(backend)])


@functools.cache
def _written(backend: str) -> str:
    """A hash of what the backend's kernels are made of: after an edit or a build they are other kernels.

    Of all files, since one kernel imports from others; of a compiled module its time, since it is large.
    """
    found = hashlib.sha256()
    for path in sorted([*(_PACKAGE / backend).glob("*.py"), *_PACKAGE.glob("*.py")]):
        found.update(path.name.encode() + path.read_bytes())
    if backend == "cuda":
        module = importlib.util.find_spec("fastrlhf._cuda")
        found.update(str(module and os.stat(module.origin).st_mtime_ns).encode())
    return found.hexdigest()[:16]


def _card(device: torch.device) -> str:
    """A GPU's name."""
    return torch.cuda.get_device_name(device)


def _triton_version() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return None
    import triton

    return triton.__version__


def _path() -> Path:
    return cache_dir() / "verified.json"


def _read() -> dict[str, str | None]:
    """What is remembered; nothing where the file is absent or not ours."""
    try:
        kept = json.loads(_path().read_text())
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}
