"""TRL, and the environment of a subprocess that imports it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fastrlhf.bench.peers import TRL, Peer, PeerError, install

REPOSITORY = Path(__file__).resolve().parents[2]


def install_trl(peer: Peer = TRL) -> Path:
    """The folder that holds TRL 1.12, or another (see `fastrlhf.bench.peers`); without it the test is skipped."""
    try:
        return install(peer)
    except PeerError as error:
        pytest.skip(str(error))


def child_environment(*paths: Path) -> dict[str, str]:
    """Environment of a subprocess that sees these folders first, one thread, no GPU and no network."""
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(map(str, paths)),
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }
