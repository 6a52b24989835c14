"""AdamW on one chunk: does fusing the clip and the bfloat16 copy pay against PyTorch's fused step?"""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "adamw"
OPTIONS = {"lr": 1e-6, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}


# The 17 M model whole, and LoRA adapters of rank 8 on SmolLM2.
@pytest.mark.parametrize("size", [17_000_000, 2_400_000], ids=str)
@pytest.mark.parametrize("way", ["step", "clip, step, copy"])
def bench_adamw(measure, device, way, size):
    torch.manual_seed(0)
    everything = way != "step"
    gradients = torch.randn(size, device=device)
    copy = torch.empty(size, dtype=torch.bfloat16, device=device) if everything else None
    # both ways are given the norm
    norm = torch.linalg.vector_norm(gradients)
    parameter = torch.nn.Parameter(torch.randn(size, device=device))
    parameter.grad = gradients.clone()
    optimizer = torch.optim.AdamW([parameter], fused=True, **OPTIONS)
    chunk = parameter.detach().clone()
    exp_avg, exp_avg_sq = torch.zeros(2, size, device=device).unbind()

    def plain():
        if everything:
            parameter.grad.mul_((1.0 / (norm + 1e-6)).clamp(max=1.0))
        optimizer.step()
        if everything:
            copy.copy_(parameter.detach())

    def ours():
        clip = {"grad_norm": norm, "max_norm": 1.0, "bfloat16_copy": copy} if everything else {}
        kernels.adamw(chunk, gradients, exp_avg, exp_avg_sq, step=10, **OPTIONS, **clip)

    measure(plain, ours)
