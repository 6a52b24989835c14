"""Rotation in place, of whole batches and of one decoding step."""

from __future__ import annotations

import torch

from fastrlhf.kernels.triton.rope_inplace import rope_inplace
from tests.support.launches.rope import heads

LAUNCHES = {
    "llama3-8b bf16": lambda: rope_inplace(*heads(8192, 32, 8, 128, 128, torch.bfloat16)),
    "llama3-8b decode bf16": lambda: rope_inplace(*heads(16, 32, 8, 128, 128, torch.bfloat16)),
    "smollm2-135m f32": lambda: rope_inplace(*heads(8192, 9, 3, 64, 64, torch.float32)),
}
