"""SwiGLU and GeGLU: one pass that recomputes in the backward against an activation and a product that keep."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import gelu, silu

from fastrlhf import kernels

OPERATION = "glu"
KINDS = {
    "swiglu": (lambda gate, up: silu(gate) * up, kernels.swiglu),
    "geglu": (lambda gate, up: gelu(gate) * up, kernels.geglu),
    "geglu tanh": (
        lambda gate, up: gelu(gate, approximate="tanh") * up,
        lambda gate, up: kernels.geglu(gate, up, "tanh"),
    ),
}


# SmolLM2's width and the 17 M model's: a batch of PPO, and a step of decoding.
@pytest.mark.parametrize("shape", [(1024, 1536), (1536, 688), (16, 1536)], ids=str)
@pytest.mark.parametrize("way", ["forward", "forward and backward"])
@pytest.mark.parametrize("kind", KINDS)
def bench_glu(measure, device, kind, way, shape):
    torch.manual_seed(0)
    training = way != "forward"
    gate, up, grad = torch.randn(3, *shape, device=device).unbind()
    gate.requires_grad_(training)
    up.requires_grad_(training)

    def run(function):
        output = function(gate, up)
        if training:
            torch.autograd.grad(output, [gate, up], grad)

    plain, ours = KINDS[kind]
    measure(f"{list(shape)} {kind}, {way}", lambda: run(ours), eager=lambda: run(plain))
