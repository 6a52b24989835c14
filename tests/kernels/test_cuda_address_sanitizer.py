"""The CUDA bodies once more, under AddressSanitizer: in a process that has its library preloaded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from native_build.toolchain import Missing, find_cxx
from tests.support import cuda_on_cpu

HERE = Path(__file__).parent
WRONG = """
import torch
from tests.support import cuda_on_cpu
out = torch.zeros(64, dtype=torch.int32)
cuda_on_cpu.bodies().faulty({kernel!r}, out.data_ptr(), False)
print("nobody saw it")
"""


@pytest.fixture(scope="module")
def run():
    """Runs Python with some arguments under AddressSanitizer; skips where its library is not."""
    cuda_on_cpu.bodies()  # skips without a compiler or CUDA's headers
    try:
        command = [*find_cxx(os.environ).command, "-print-file-name=libasan.so"]
    except Missing as missing:
        pytest.skip(str(missing))
    library = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    if not Path(library).is_absolute():
        pytest.skip("the compiler has no libasan.so")

    def run(*arguments: str) -> subprocess.CompletedProcess:
        environment = {
            **os.environ,
            "LD_PRELOAD": library,
            # Python keeps memory until it ends
            "ASAN_OPTIONS": "detect_leaks=0",
            "PYTHONMALLOC": "malloc",
            "FASTRLHF_ADDRESS_SANITIZER": "1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        return subprocess.run(
            [sys.executable, *arguments],
            cwd=cuda_on_cpu.ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.skipif(cuda_on_cpu.ADDRESS, reason="this is that process")
class TestUnderAddressSanitizer:
    @pytest.mark.parametrize(
        ("kernel", "finding"),
        [
            ("writes_past_the_end", "heap-buffer-overflow"),
            ("writes_past_the_end_of_shared_memory", "global-buffer-overflow"),
        ],
    )
    def test_it_sees_a_write_past_the_end(self, run, kernel, finding):
        done = run("-c", WRONG.format(kernel=kernel))
        assert done.returncode != 0 and "nobody saw it" not in done.stdout
        assert f"AddressSanitizer: {finding}" in done.stderr and kernel in done.stderr

    def test_no_body_leaves_its_memory(self, run):
        files = [
            str(path) for path in sorted(HERE.glob("test_cuda_*.py")) if path.name != Path(__file__).name
        ]
        done = run("-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow and not gpu", *files)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
        assert " passed" in done.stdout
