"""A layer's product: decoding's thin ones straight from row-major weights, training's by the provider measured."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "linear"
VOCABULARIES = [(49_152, 576), (50_304, 256)]
LAYERS = [(1536, 576), (576, 1536), (576, 576), (192, 576), (1024, 256), (256, 1024), (256, 256)]


def inputs(rows, out, width, device):
    torch.manual_seed(0)
    return torch.randn(rows, width, device=device), torch.randn(out, width, device=device) / width**0.5


@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("shape", [*VOCABULARIES, *LAYERS], ids=str)
@torch.inference_mode()
def bench_decoding(measure, device, shape, batch):
    x, weight = inputs(batch, *shape, device)
    measure(lambda: torch.nn.functional.linear(x, weight), lambda: kernels.linear(x, weight))


@pytest.mark.parametrize("batch", [1, 2, 4, 8])
@pytest.mark.parametrize("format", ["int8", "nf4"])
@pytest.mark.parametrize("shape", [*VOCABULARIES, *LAYERS], ids=str)
@torch.inference_mode()
def bench_decoding_quantised(measure, device, shape, format, batch):
    """Plain: our own float32."""
    x, weight = inputs(batch, *shape, device)
    quantised = kernels.quantize(weight, format)
    measure(lambda: kernels.linear(x, weight), lambda: kernels.linear(x, quantised))


@pytest.mark.parametrize("rows", [128, 1024])
@pytest.mark.parametrize("shape", LAYERS, ids=str)
@pytest.mark.parametrize("frozen", [True, False], ids=["frozen", "trained"])
def bench_training(measure, device, shape, frozen, rows):
    """Forward and backward; a trained weight changes before each, and is packed anew."""
    x, weight = inputs(rows, *shape, device)
    weight.requires_grad_(not frozen)
    leaves = [x.requires_grad_()] if frozen else [x.requires_grad_(), weight]
    grad = torch.randn(rows, shape[0], device=device)

    def run(linear):
        if not frozen:
            with torch.no_grad():
                weight.mul_(1.0)
        torch.autograd.grad(linear(x, weight), leaves, grad)

    run(kernels.linear)  # measures the providers
    measure(lambda: run(torch.nn.functional.linear), lambda: run(kernels.linear))
