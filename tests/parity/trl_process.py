"""TRL 1.12 beside the repository, and the environment of a subprocess that imports it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

TRL = "1.12.0"
REPOSITORY = Path(__file__).resolve().parents[2]


def install_trl() -> Path:
    """The folder that holds TRL 1.12, in $FASTRLHF_PEERS or `.peers/`, installed if it is not there yet."""
    peers = Path(os.environ.get("FASTRLHF_PEERS") or REPOSITORY / ".peers")
    folder = peers / f"trl-{TRL}"
    if folder.is_dir():
        return folder
    peers.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".trl-{TRL}.", dir=peers))
    try:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--retries", "1", "--target", str(temporary), "--no-deps", f"trl=={TRL}"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "pip failed").splitlines()[-1]
            pytest.skip(
                f"trl=={TRL} cannot be installed to compare with (is the registry in reach?): {reason}"
            )
        try:
            temporary.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def child_environment(*paths: Path) -> dict[str, str]:
    """Environment of a subprocess that sees these folders first, one thread, no GPU and no network."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
