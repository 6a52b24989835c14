"""The packages that we compare with, installed into folders of their own, beside the environment that runs us."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from fastrlhf.cache import cache_dir


class PeerError(RuntimeError):
    """A peer is not there and cannot be installed; the message says why and what was tried."""


@dataclass(frozen=True)
class Peer:
    """A package at the one version that is compared with."""

    name: str
    version: str

    @property
    def requirement(self) -> str:
        return f"{self.name}=={self.version}"


TRL = Peer("trl", "1.12.0")  # the last with PPO
TRL_NOW = Peer("trl", "1.16.0")
CTRANSLATE2 = Peer("ctranslate2", "4.8.5")


def peers_dir() -> Path:
    """`$FASTRLHF_PEERS`, else `peers` in the cache folder."""
    chosen = os.environ.get("FASTRLHF_PEERS")
    return Path(chosen).expanduser().absolute() if chosen else cache_dir() / "peers"


def install(peer: Peer) -> Path:
    """The folder that holds the peer, which pip fills now if no earlier call has.

    Only the package itself is in it: on PYTHONPATH it adds the peer, and torch, transformers and peft stay those of
    this environment, so that both sides of a comparison run the same.

    Raises:
        PeerError: pip could not install it.
    """
    folder = peers_dir() / f"{peer.name}-{peer.version}"
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        command += ["--retries", "1", "--target", str(temporary), "--no-deps", peer.requirement]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            reason = (done.stderr.strip() or done.stdout.strip() or "pip failed").splitlines()[-1]
            raise PeerError(
                f"{peer.requirement} cannot be installed to compare with (is the registry in reach?): {reason}"
            )
        try:
            temporary.rename(folder)
        except OSError:  # another process was first
            if not folder.is_dir():
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder
