"""RMS norm with the residual before it, as each half of a block has it, and layer norm: one pass against several."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "norm"
EPS = 1e-5


def plain_rms(hidden_states, weight, bias, residual):
    """As Llama's blocks have it."""
    summed = hidden_states + residual
    x = summed.float()
    x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + EPS)
    return weight * x.to(summed.dtype), summed


def plain_layer(hidden_states, weight, bias, residual):
    summed = hidden_states + residual
    return torch.nn.functional.layer_norm(summed, weight.shape, weight, bias, EPS), summed


def rms(hidden_states, weight, bias, residual):
    return tuple(kernels.rms_norm(hidden_states, weight, eps=EPS, residual=residual))


def layer(hidden_states, weight, bias, residual):
    return tuple(kernels.layer_norm(hidden_states, weight, bias, eps=EPS, residual=residual))


# SmolLM2's width and the 17 M model's: a batch of PPO, and a step of decoding.
@pytest.mark.parametrize("shape", [(1024, 576), (1536, 256), (16, 576)], ids=str)
@pytest.mark.parametrize("way", ["forward", "forward and backward"])
@pytest.mark.parametrize("kind", ["rms", "layer"])
def bench_norm(measure, device, kind, way, shape):
    torch.manual_seed(0)
    training = way != "forward"
    hidden_states, residual, *grads = torch.randn(4, *shape, device=device).unbind()
    weight, bias = torch.randn(2, shape[1], device=device).unbind()
    leaves = [hidden_states, residual, weight] + ([bias] if kind == "layer" else [])
    for leaf in leaves:
        leaf.requires_grad_(training)

    def run(function):
        outputs = function(hidden_states, weight, bias, residual)
        if training:
            torch.autograd.grad(outputs, leaves, grads)

    plain, ours = (plain_rms, rms) if kind == "rms" else (plain_layer, layer)
    measure(f"{list(shape)} {kind}, {way}", lambda: run(ours), eager=lambda: run(plain))
