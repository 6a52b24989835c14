from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu_check
from fastrlhf.bench.kernels import Row
from fastrlhf.kernels import dispatch
from tests.support.backends import backends_of

REPORT = """<testsuites><testsuite>
<testcase classname="tests.kernels.test_gae" name="test_a[cuda]"/>
<testcase classname="tests.kernels.test_gae" name="test_b[cuda]"><failure message="m">text</failure></testcase>
<testcase classname="tests.kernels.test_gae" name="test_c[cuda]"><skipped/></testcase>
<testcase classname="tests.kernels.test_gae" name="test_d[cuda]"><error/></testcase>
</testsuite></testsuites>"""
ROW = Row("gae", "(64, 512)", "cuda", 1.0, 2.0, 3.0, 4.0, 3.5, 4.5, 15, "cuda", 2, "2.13.0")
GREEN = {"passed": 7, "skipped": 1, "failed": []}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_and_counts_what_one_would_run(capsys):
    assert gpu_check.main([]) == 0
    told = capsys.readouterr().out
    assert told.startswith("there is no GPU here; on one, ")
    tests, benchmarks = (int(word) for word in told.split() if word.isdigit())
    written = [(o, b) for o in dispatch.OPERATIONS for b in ("triton", "cuda") if dispatch.written(o, b)]
    assert tests >= 10 * len(written) > 0, "every operation has more cases than that"
    assert benchmarks >= 1


def test_without_a_gpu_it_fails_if_there_would_be_nothing_to_run(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for counts in ((0, 4), (4, 0)):
        left = list(counts)
        monkeypatch.setattr(gpu_check, "collect", lambda selection, left=left: left.pop(0))
        assert gpu_check.main([]) == 1
        assert "the cases of the GPU are not found any more" in capsys.readouterr().out


@pytest.mark.slow
def test_what_cannot_be_collected_is_an_error_and_nothing_is_nothing(tmp_path):
    (tmp_path / "test_nothing.py").write_text("")
    assert gpu_check.collect([str(tmp_path)]) == 0
    (tmp_path / "test_broken.py").write_text("import no_such_module_anywhere")
    with pytest.raises(SystemExit, match="the cases cannot be collected"):
        gpu_check.collect([str(tmp_path)])


def test_a_case_of_a_gpu_is_marked(monkeypatch):
    def marked():
        return {param.values[0]: [mark.name for mark in param.marks] for param in backends_of("gae")}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("FASTRLHF_GPU_CASES", raising=False)
    assert not any(marked().values()), "without a GPU Triton is interpreted, and CUDA C++ is not there"
    monkeypatch.setenv("FASTRLHF_GPU_CASES", "1")
    assert marked()["cuda"] == ["gpu"] and marked()["reference"] == []


@pytest.fixture
def gpu(monkeypatch):
    """A GPU is pretended, and what runs on it: `gpu(tests, status)`."""

    def pretend(tests=GREEN, status=0):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(gpu_check, "gpu_names", lambda: ["cuda:0 NVIDIA H100 80GB HBM3, 80 GiB, sm_90"])
        monkeypatch.setattr(gpu_check, "run_tests", lambda: tests)
        monkeypatch.setattr(gpu_check, "run_doctor", lambda: {"status": status, "shown": ["gae 0.30"]})
        monkeypatch.setattr(gpu_check, "run_benchmarks", lambda: [ROW])

    return pretend


def test_on_a_gpu_it_writes_card_versions_and_figures(gpu, tmp_path, capsys):
    gpu()
    assert gpu_check.main(["--out", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "gpu_nvidia_h100_80gb_hbm3.json").read_text())
    assert found["card"] == ["cuda:0 NVIDIA H100 80GB HBM3, 80 GiB, sm_90"]
    assert found["versions"]["torch"] == torch.__version__
    assert found["tests"] == GREEN
    assert found["benchmarks"][0]["p50_ms"] == 2.0
    assert "7 tests passed, 0 failed, 1 timings" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("tests", "status"),
    [
        ({"passed": 7, "skipped": 0, "failed": ["test_gae.test_b"]}, 0),
        (GREEN, 1),
        ({"passed": 0, "skipped": 9, "failed": []}, 0),
    ],
    ids=["a test failed", "a kernel is wrong", "nothing ran"],
)
def test_on_a_gpu_what_is_wrong_fails(gpu, tmp_path, tests, status):
    gpu(tests, status)
    assert gpu_check.main(["--out", str(tmp_path)]) == 1


def test_reads_what_pytest_reports():
    counts = gpu_check.read_tests(REPORT)
    failed = ["tests.kernels.test_gae.test_b[cuda]", "tests.kernels.test_gae.test_d[cuda]"]
    assert counts == {"passed": 1, "skipped": 1, "failed": failed}
