"""TRL 1.12, installed once, and what it made of every case in one subprocess."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity_cases import CASES, make_models, make_rollouts
from safetensors.torch import save_file
from trl_process import child_environment, install_trl

WORKER = Path(__file__).with_name("trl_worker.py")


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
        described = {"family": case.family, "adapter": case.adapter, "arguments": case.arguments}
        (folder / "case.json").write_text(json.dumps(described))
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
