"""AdamW on one chunk: does fusing the clip and the bfloat16 copy pay against PyTorch's fused step?"""

from __future__ import annotations

import pytest
import torch

from benchmarks.contenders import beside
from fastrlhf import kernels

OPERATION = "adamw"
OPTIONS = {"lr": 1e-6, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
# Above every norm here: clipping multiplies by one, and the gradients stay what they are from call to call.
MAX_NORM = 1e6

# A chunk beyond every cache, the 17 M model whole, and LoRA adapters of rank 8 on SmolLM2.
SIZES = {"100 M": 100_000_000, "17 M": 17_000_000, "2.4 M": 2_400_000}


# Compiled, an optimizer's step is a kernel of the same bytes as fused=True.
@beside("fused", compiled=False, reference=False)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("way", ["step", "clip, step and bfloat16 copy"])
def bench_adamw(measure, device, way, size):
    """Eager: PyTorch's default step. Clipping includes finding the norm, in every way."""
    torch.manual_seed(0)
    everything, count = way != "step", SIZES[size]
    chunk, gradients = torch.randn(2, count, device=device).unbind()
    copy = torch.empty(count, dtype=torch.bfloat16, device=device) if everything else None

    def others(**kind):
        parameter = torch.nn.Parameter(chunk)
        parameter.grad = gradients
        optimizer = torch.optim.AdamW([parameter], **kind, **OPTIONS)

        def run():
            if everything:
                torch.nn.utils.clip_grad_norm_([parameter], MAX_NORM)
            optimizer.step()
            if everything:
                copy.copy_(parameter.detach())

        return run

    moments = []

    def ours():
        if not moments:  # made by the first call, so that the others' runs do not hold them
            moments.extend(torch.zeros(2, count, device=device).unbind())
        clip = {}
        if everything:
            norm = torch.linalg.vector_norm(gradients)
            clip = {"grad_norm": norm, "max_norm": MAX_NORM, "bfloat16_copy": copy}
        kernels.adamw(chunk, gradients, *moments, step=10, **OPTIONS, **clip)

    measure(f"{size}: {way}", ours, eager=others(), fused=others(fused=True))
