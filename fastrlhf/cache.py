"""Where what is computed once on a machine is kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """The folder for what is computed once: converted models, verdicts on kernels.

    It is `$FASTRLHF_CACHE`, else `fastrlhf` under `$XDG_CACHE_HOME`, else `~/.cache/fastrlhf`. The folder is
    not created here. An empty variable counts as unset, and so does a relative `XDG_CACHE_HOME` (XDG Base
    Directory Specification: "consider the path invalid and ignore it").
    """
    if chosen := os.environ.get("FASTRLHF_CACHE"):
        return Path(chosen).expanduser().absolute()
    xdg = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (xdg if xdg.is_absolute() else Path("~/.cache").expanduser()) / "fastrlhf"
