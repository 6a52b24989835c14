from __future__ import annotations

import os
import textwrap
from pathlib import Path

import pytest

import fastrlhf
from fastrlhf.bench.sides import SideError, environment, run_side

SIDE = """
    import torch
    from fastrlhf.bench.sides import serve

    def measure(job):
        print("noise on stdout")
        if job["answer"] == 0:
            raise ValueError("nothing to measure")
        return {"answer": job["answer"], "threads": torch.get_num_threads(), "wrote": job["folder"]}

    if __name__ == "__main__":
        serve(measure)
"""


@pytest.fixture
def peer(tmp_path):
    (tmp_path / "a_side.py").write_text(textwrap.dedent(SIDE))
    return tmp_path


def test_a_job_goes_in_and_a_result_comes_out_with_threads_and_memory(peer):
    result = run_side("a_side", {"answer": 42}, threads=1, peers=[peer])
    assert result["answer"] == 42
    assert result["threads"] == 1
    assert result["peak_rss_mb"] > 50
    assert not Path(result["wrote"]).exists(), "its folder is gone afterwards"


def test_a_side_that_fails_says_its_last_words(peer):
    with pytest.raises(SideError, match=r"(?s)a_side failed \(exit status 1\).*nothing to measure"):
        run_side("a_side", {"answer": 0}, threads=1, peers=[peer])


def test_a_peer_comes_first_on_the_path_then_this_very_package(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "elsewhere")
    found = environment(2, [tmp_path])
    paths = found["PYTHONPATH"].split(os.pathsep)
    assert paths == [str(tmp_path), str(Path(fastrlhf.__file__).parents[1]), "elsewhere"]
    assert found["OMP_NUM_THREADS"] == "2"
