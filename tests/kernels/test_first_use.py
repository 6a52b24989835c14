"""A GPU's first use of a kernel. The GPU is pretended: the CPU stands in for it, and a function for its kernel."""

from __future__ import annotations

import json
import types
import warnings

import pytest
import torch

from fastrlhf.kernels import dispatch, first_use
from fastrlhf.kernels.reference.gae import gae as reference_gae
from fastrlhf.kernels.verify import Verdict

GPU = torch.device("cuda", 0)


class OnGPU:
    """What dispatch looks at in a tensor of a GPU."""

    device, dtype, is_cpu = GPU, torch.float32, False


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A GPU whose gae kernel of the cuda backend is what a test says: `gpu.kernel`; `gpu.calls` counts its uses."""
    gpu = types.SimpleNamespace(kernel=reference_gae, calls=0, card="Card 1", written=1, capturing=False)

    def gae(*args):
        gpu.calls += 1
        return gpu.kernel(*args)

    modules, declined, verify = dispatch._module, dispatch._declined, first_use.verify
    fake = types.SimpleNamespace(gae=gae)
    monkeypatch.setattr(dispatch, "_module", lambda *key: fake if key == ("gae", "cuda") else modules(*key))
    monkeypatch.setattr(
        dispatch, "_declined", lambda *key: None if key[:2] == ("gae", "cuda") else declined(*key)
    )
    # the cases go to the CPU
    monkeypatch.setattr(first_use, "verify", lambda *key: verify(*key[:2], torch.device("cpu")))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: gpu.card)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: gpu.capturing)
    monkeypatch.setattr(first_use, "_written", lambda backend: str(gpu.written))
    monkeypatch.setenv("FASTRLHF_CACHE", str(tmp_path))
    monkeypatch.setattr(first_use, "_verdicts", {})
    monkeypatch.delenv("FASTRLHF_BACKEND", raising=False)
    dispatch._from_environment.cache_clear()
    yield gpu
    dispatch._from_environment.cache_clear()


def wrong(*args):
    advantages, *rest = reference_gae(*args)
    return (advantages + 1, *rest)


def chosen():
    return dispatch._choose("gae", (OnGPU(),))


def forget(monkeypatch):
    """As in a new process."""
    monkeypatch.setattr(first_use, "_verdicts", {})


def test_a_right_kernel_is_proved_once_for_all_processes(gpu, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen().__qualname__.startswith("gpu.")
        calls = gpu.calls
        assert calls > 1
        chosen()
        forget(monkeypatch)
        chosen()
    assert gpu.calls == calls


def test_a_wrong_kernel_is_not_used_and_the_notice_can_be_reported(gpu, monkeypatch, tmp_path):
    gpu.kernel = wrong
    for _ in range(2):
        with pytest.warns(RuntimeWarning) as caught:
            assert chosen() is reference_gae
        (notice,) = [str(warning.message) for warning in caught]
        assert notice.startswith("gae: the cuda kernel is wrong on this Card 1 (")
        assert "times the error allowed in float32, " in notice
        assert "Please report this with the output of `fastrlhf doctor --verify`" in notice
        calls = gpu.calls
        forget(monkeypatch)
    assert gpu.calls == calls, "the second process remembers"
    (key,) = json.loads((tmp_path / "verified.json").read_text())
    assert key.startswith("gae, cuda, Card 1, fastrlhf ")


def test_the_notice_comes_once_a_process(gpu):
    gpu.kernel = wrong
    with pytest.warns(RuntimeWarning):
        chosen()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() is reference_gae


def test_another_card_version_or_build_is_proved_anew(gpu, monkeypatch):
    chosen()
    for change in (
        lambda: setattr(gpu, "card", "Card 2"),
        lambda: setattr(gpu, "written", 2),
        lambda: monkeypatch.setattr(first_use, "__version__", "9"),
    ):
        calls = gpu.calls
        change()
        forget(monkeypatch)
        chosen()
        assert gpu.calls > calls


def test_who_forces_a_kernel_gets_it_as_it_is(gpu):
    gpu.kernel = wrong
    with dispatch.using("cuda"), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen() is not reference_gae
    assert gpu.calls == 0


def test_nothing_is_proved_while_a_graph_is_captured(gpu):
    gpu.kernel, gpu.capturing = wrong, True
    assert chosen() is not reference_gae
    assert gpu.calls == 0
    gpu.capturing = False
    with pytest.warns(RuntimeWarning):
        assert chosen() is reference_gae


@pytest.mark.parametrize("text", ["", "{", "[1]"])
def test_a_cache_that_is_not_ours_is_written_anew(gpu, tmp_path, text):
    (tmp_path / "verified.json").write_text(text)
    chosen()
    assert list(json.loads((tmp_path / "verified.json").read_text()).values()) == [None]


def test_a_folder_that_cannot_be_written_is_no_error(gpu, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTRLHF_CACHE", str(tmp_path / "file" / "below"))
    chosen()
    assert gpu.calls > 0


def test_doctor_renews_a_verdict(gpu, monkeypatch):
    gpu.kernel = wrong
    with pytest.warns(RuntimeWarning):
        chosen()
    first_use.remember(Verdict("gae", "cuda", 0.5, "float32, ragged rows"), GPU)
    forget(monkeypatch)
    assert chosen() is not reference_gae


def test_a_cpu_is_never_asked(monkeypatch):
    monkeypatch.setattr(first_use, "unproved", lambda *_: pytest.fail("asked"))
    dispatch.call("gae", *[torch.ones(1, 2)] * 2, *[torch.ones(1, 2).bool()] * 2, 1.0, 0.95)


@pytest.mark.parametrize("edited", ["triton/gae.py", "triton/attention_tile.py", "code_books.py"])
def test_an_edit_in_what_a_kernel_imports_makes_it_another(monkeypatch, tmp_path, edited):
    written = first_use._written.__wrapped__
    (tmp_path / "triton").mkdir()
    for name in ("triton/gae.py", "triton/attention_tile.py", "code_books.py"):
        (tmp_path / name).write_text("a = 1\n")
    monkeypatch.setattr(first_use, "_PACKAGE", tmp_path)
    before = written("triton")
    assert written("triton") == before
    (tmp_path / edited).write_text("a = 2\n")
    assert written("triton") != before


def test_each_backend_has_a_hash_of_its_own_files():
    assert first_use._written("triton") != first_use._written("cuda")
    assert first_use._triton_version() is None or first_use._triton_version()[0].isdigit()
