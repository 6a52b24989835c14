"""Each side of a comparison runs in a process of its own: a job goes in as JSON, what was measured comes out as JSON.

The threads of two matrix libraries in one process spin against each other, and peak memory is a process's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import fastrlhf


class SideError(RuntimeError):
    """A side's process failed; the message holds its last words."""


def run_side(module: str, job: dict[str, Any], *, threads: int, peers: Sequence[Path] = ()) -> dict[str, Any]:
    """Run `python -m module` on the job and return its result.

    Args:
        module: its `__main__` calls `serve`.
        threads: of the processor; the job's `threads` is set to it.
        peers: folders that come first on the process's path.

    Raises:
        SideError: the process failed.
    """
    with tempfile.TemporaryDirectory(prefix="fastrlhf-bench-") as folder:
        job_file, result_file = Path(folder, "job.json"), Path(folder, "result.json")
        job_file.write_text(json.dumps({**job, "threads": threads, "folder": folder}))
        done = subprocess.run(
            [sys.executable, "-m", module, str(job_file), str(result_file)],
            env=environment(threads, peers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SideError(
                f"{module} failed (exit status {done.returncode}):\n{done.stderr[-3000:].strip()}"
            )
        return json.loads(result_file.read_text())


def environment(threads: int, peers: Sequence[Path]) -> dict[str, str]:
    """The environment of a side: the peers and then this very package first on its path, no GPU, no network."""
    ours = Path(fastrlhf.__file__).parents[1]
    paths = [*map(str, peers), str(ours), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {
        "PYTHONPATH": os.pathsep.join(paths),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRL_EXPERIMENTAL_SILENCE": "1",
    }


def serve(measure: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """The `__main__` of a side: read the job, measure, and write the result with the process's peak memory."""
    import torch

    from fastrlhf.memory.resident import peak_resident_mb

    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(job["threads"])
    result = measure(job)
    Path(sys.argv[2]).write_text(json.dumps({**result, "peak_rss_mb": peak_resident_mb()}))
