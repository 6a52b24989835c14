from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest
import torch

PROGRAM = """
import sys
import fastrlhf.ppo
assert ("triton" in sys.modules) == {loaded}, "after fastrlhf.ppo"
import torch
double = torch.compile(lambda x: 2 * x, backend="aot_eager", fullgraph=True)
assert double(torch.ones(2)).tolist() == [2, 2]
import triton
assert triton.__version__
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.skipif(torch.accelerator.is_available(), reason="kernels run on an accelerator here")
@pytest.mark.parametrize("interpret", ["0", "1"])
def test_transformers_comes_without_triton_and_triton_still_imports(interpret):
    program = PROGRAM.format(loaded=interpret == "1")
    environment = os.environ | {"TRITON_INTERPRET": interpret}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
