"""Imported for its effect, before transformers: leaves Triton out of `torch._dynamo` where there is no GPU.

transformers imports `torch._dynamo`, and that imports Triton wherever it is installed: 74 MB resident, which nothing
needs on a machine whose kernels are all the CPU's. Triton can be imported afterwards as ever, and `torch.compile`
compiles for the CPU as ever.
"""

from __future__ import annotations

import importlib
import os
import sys

import torch


def _import_dynamo() -> None:
    wanted = torch.accelerator.is_available() or os.environ.get("TRITON_INTERPRET") == "1"
    if wanted or "triton" in sys.modules or "torch._dynamo" in sys.modules:
        return
    sys.modules["triton"] = None  # an import of it then fails as if it were not installed
    try:
        importlib.import_module("torch._dynamo")
    finally:
        del sys.modules["triton"]


_import_dynamo()
