from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from fastrlhf.device.launch import LaunchError, launch, launch_triton, observing_triton
from fastrlhf.kernels import native


@pytest.fixture
def pretend_gpu(monkeypatch):
    """PyTorch's device guard and stream, without a GPU; returns what was asked of them, in order."""
    asked = []

    @contextmanager
    def guard(device):
        asked.append(f"enter {device}")
        yield
        asked.append("leave")

    monkeypatch.setattr(torch.cuda, "device", guard)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: SimpleNamespace(cuda_stream=0xABC))
    return asked


def module(asked, *, set_device=0, kernel=0):
    """A compiled module whose functions return the given errors."""

    def record(name, error):
        return lambda *args: asked.append((name, *args)) or error

    return SimpleNamespace(
        set_device=record("set_device", set_device),
        scale=record("scale", kernel),
        error_name=lambda error: f"cudaError{error}",
        error_text=lambda error: f"text of {error}",
    )


def test_launches_on_the_current_stream_under_the_device_guard(pretend_gpu):
    launch(module(pretend_gpu), "scale", torch.device("cuda", 3), 1, [2, 3])
    assert pretend_gpu == ["enter cuda:3", ("set_device", 3), ("scale", 1, [2, 3], 0xABC), "leave"]


def test_an_error_names_the_kernel_and_says_what_it_means(pretend_gpu):
    with pytest.raises(LaunchError, match=r"^scale: cudaError9: text of 9$"):
        launch(module(pretend_gpu, kernel=9), "scale", torch.device("cuda", 3))


def test_nothing_is_launched_where_the_device_cannot_be_had(pretend_gpu):
    with pytest.raises(LaunchError, match="cudaError35"):
        launch(module(pretend_gpu, set_device=35), "scale", torch.device("cuda", 3))
    assert not any(entry[0] == "scale" for entry in pretend_gpu)


@pytest.mark.skipif(native.missing("_cuda") is not None, reason=f"fastrlhf._cuda: {native.missing('_cuda')}")
class TestWithoutADriver:
    """The compiled module on a machine with no CUDA driver."""

    @pytest.fixture(autouse=True)
    def cuda(self):
        self.cuda = native.module("_cuda")
        if self.cuda.device_count():
            pytest.skip("this machine has a GPU")

    def test_a_launch_raises_the_error_that_says_so(self, pretend_gpu):
        arguments = {
            "gae": (False, [0] * 7, 0, 2, 3, 1.0, 0.95),
            "group_advantages": (False, [0] * 6, 0, 2, 3, 1, 1e-4),
            "ppo_loss": (True, [0] * 18, 0, 10, [0.1] * 8, 3),
        }
        for kernel, args in arguments.items():
            with pytest.raises(
                LaunchError, match=f"{kernel}: cudaErrorInsufficientDriver: CUDA driver version"
            ):
                launch(self.cuda, kernel, torch.device("cuda", 0), *args)

    def test_the_kernels_report_it_themselves(self):
        error = self.cuda.gae(False, [0] * 7, 0, 2, 3, 1.0, 0.95, 0)
        assert self.cuda.error_name(error) == "cudaErrorInsufficientDriver"
        error = self.cuda.ppo_loss(False, [0] * 18, 0, 10, [0.1] * 8, 3, 0)
        assert self.cuda.error_name(error) == "cudaErrorInsufficientDriver"


def test_a_triton_kernel_fuses_products_and_sums_unless_it_says_otherwise():
    """Said each time: what an unsaid one does changes with Triton's version."""
    seen = []
    with observing_triton(lambda kernel, grid, args, meta: seen.append(meta)):
        launch_triton(None, (1,), torch.device("meta"), BLOCK=8)
        launch_triton(None, (1,), torch.device("meta"), enable_fp_fusion=False)
    assert seen == [{"enable_fp_fusion": True, "BLOCK": 8}, {"enable_fp_fusion": False}]
