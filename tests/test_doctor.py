from __future__ import annotations

import re
import subprocess
import sys

import pytest
import torch

from fastrlhf import cli, doctor
from fastrlhf.kernels import dispatch, native
from fastrlhf.version import __version__


@pytest.fixture
def report(capsys, monkeypatch):
    """Runs `fastrlhf doctor` on a wide terminal; returns what it prints, its table lines taken out."""
    monkeypatch.setenv("COLUMNS", "240")

    def run() -> str:
        assert cli.main(["doctor"]) == 0
        return re.sub(r"[│┃─━┏┓└┘├┤┬┴┼┳┻╇┡┩]", "", capsys.readouterr().out)

    return run


def test_shows_versions_and_machine(report):
    shown = report()
    assert re.search(rf"fastrlhf +{re.escape(__version__)}", shown)
    assert re.search(rf"torch +{re.escape(torch.__version__)}", shown)
    assert f"{torch.get_num_threads()} threads used" in shown
    if not torch.cuda.is_available():
        assert "none that PyTorch sees" in shown


def test_shows_every_operation_with_what_runs(report):
    shown = report()
    for operation in dispatch.OPERATIONS:
        native_kernel = native.missing("_cpu") is None and dispatch.written(operation, "cpu")
        expected = "cpu" if native_kernel else "reference"
        assert re.search(rf"^ *{operation} +ready .* {expected} *$", shown, re.MULTILINE)


def test_an_idle_backend_has_its_reason_once(report, monkeypatch):
    monkeypatch.setattr("fastrlhf.kernels.cuda.unavailable", lambda: "there is no driver")
    dispatch._missing.cache_clear()
    shown = report()
    dispatch._missing.cache_clear()
    assert shown.count("cuda: there is no driver") == 1
    assert re.search(r"^ *gae +ready .* - ", shown, re.MULTILINE)


def test_a_missing_module_shows_why_its_cost_and_the_mend(report, monkeypatch):
    reasons = {"_cpu": "g++ said: [error] no", "_cuda": "switched off by FASTRLHF_CUDA=0"}
    monkeypatch.setattr(native, "missing", reasons.get)
    shown = report()
    assert "why: g++ said: [error] no" in shown
    assert "cost: on a CPU loss and advantages run in plain PyTorch" in shown
    assert "mend: provide a C++ compiler" in shown
    assert "mend: unset FASTRLHF_CUDA, then" in shown
    assert shown.count(native.mend()) == 2


def test_a_built_module_shows_compiler_architectures_and_notices(report, monkeypatch):
    info = {
        "compiler": "nvcc 13.0",
        "architectures": ["80", "90"],
        "notices": ["does not support 120: left out"],
    }
    monkeypatch.setattr(native, "missing", lambda name: None)
    monkeypatch.setattr(native, "build_info", lambda name: info)
    monkeypatch.setattr("fastrlhf.kernels.cuda.unavailable", lambda: "built, but there is no CUDA device")
    monkeypatch.setattr(doctor, "machine_table", lambda: "")
    shown = report()
    for text in ("nvcc 13.0", "for sm_80, sm_90", "does not support 120", "not used here: built, but"):
        assert text in shown


class TestVerify:
    @pytest.fixture(autouse=True)
    def without_triton(self, monkeypatch):
        """The interpreter has tests of its own, and takes long."""
        monkeypatch.setattr("fastrlhf.kernels.triton.unavailable", lambda: "not in this test")
        dispatch._missing.cache_clear()
        yield
        dispatch._missing.cache_clear()

    def test_every_operation_has_a_row_and_all_are_right(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "240")
        assert cli.main(["doctor", "--verify", "--device", "cpu"]) == 0
        shown = capsys.readouterr().out
        assert "Worst error on cpu, as a share of what is allowed" in shown
        for operation in dispatch.OPERATIONS:
            assert re.search(rf"^│ {operation} +│ 0\.\d\d \(", shown, re.MULTILINE)
        assert shown.endswith("every kernel that runs here is right\n")

    def test_a_wrong_kernel_is_named_and_fails(self, capsys, monkeypatch):
        from fastrlhf.kernels.reference import gae as module

        genuine = module.gae
        calls = []

        def wrong_at_first(*args):
            out = genuine(*args)
            calls.append(1)
            return (
                (out[0] + 1, *out[1:]) if len(calls) % 3 == 1 else out
            )  # the kernel; plain and exact follow

        monkeypatch.setenv("COLUMNS", "240")
        monkeypatch.setattr(module, "gae", wrong_at_first)
        assert cli.main(["doctor", "--verify", "--device", "cpu"]) == 1
        shown = capsys.readouterr().out
        assert re.search(
            r"^wrong:\n  gae \(reference\): \S+ times the error allowed in float32", shown, re.MULTILINE
        )
        assert "linear_logprob (" not in shown

    @pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
    def test_a_device_that_is_not_there_is_refused(self, capsys):
        assert cli.main(["doctor", "--verify", "--device", "cuda"]) == 1
        assert "cuda:0 is not there" in capsys.readouterr().out


def test_what_runs_follows_the_forced_backend():
    with dispatch.using("reference"):
        assert doctor.running("gae", "cpu") == "reference"


def test_a_package_that_is_not_there_is_called_so():
    assert doctor.version_of("torch") == torch.__version__
    assert doctor.version_of("no-such-package-anywhere") == "not installed"


def test_the_processor_has_a_name(tmp_path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor : 0\nmodel name\t: Some CPU 3000\n")
    assert doctor.cpu_name(cpuinfo) == "Some CPU 3000"
    assert doctor.cpu_name(tmp_path / "absent")


def test_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"fastrlhf {__version__}\n"


def test_help_answers_without_importing_torch():
    code = "import sys\nfrom fastrlhf import cli\ntry:\n  cli.main(['--help'])\nexcept SystemExit:\n  pass\n"
    code += "print({'torch', 'transformers', 'rich', 'numpy'} & set(sys.modules))"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "doctor" in told
    assert told.splitlines()[-1] == "set()"
