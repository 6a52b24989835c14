"""TRL 1.12, installed beside the repository once, and what it made of every case in one subprocess."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from parity_cases import CASES, make_models, make_rollouts
from safetensors.torch import save_file

TRL = "1.12.0"
REPOSITORY = Path(__file__).resolve().parents[2]
WORKER = Path(__file__).with_name("trl_worker.py")


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


@pytest.fixture(scope="session")
def trl_folder() -> Path:
    """Put it on PYTHONPATH to import TRL 1.12."""
    return install_trl()


@pytest.fixture(scope="session")
def trl_results(trl_folder, tmp_path_factory) -> Path:
    """The folder of `trl_worker.py`, with every case run."""
    root = tmp_path_factory.mktemp("parity")
    make_models(root / "models")
    for case in CASES:
        folder = root / "cases" / case.id
        folder.mkdir(parents=True)
        (folder / "case.json").write_text(json.dumps({"family": case.family, "arguments": case.arguments}))
        save_file(make_rollouts(case.ends), folder / "rollouts.safetensors")
    done = subprocess.run(
        [sys.executable, str(WORKER), str(root)],
        env=child_environment(trl_folder),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"TRL's side failed:\n{done.stderr[-4000:]}"
    return root


@pytest.fixture(autouse=True)
def one_thread():
    """Tiny models are fastest on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
