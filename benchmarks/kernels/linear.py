"""A layer's product: decoding's thin ones straight from row-major weights, training's by the provider measured."""

from __future__ import annotations

import functools
import itertools
import operator

import pytest
import torch

from benchmarks.contenders import beside
from fastrlhf import kernels
from fastrlhf.kernels.packed import packed

OPERATION = "linear"
# A step of decoding reads each layer's weight once, so that none is in the cache when its turn comes: as many copies of
# a thin product's weight take turns as have this many bytes.
COLD_BYTES = 256 << 20
VOCABULARIES = [(49_152, 576), (50_304, 256)]
THIN_LAYERS = [(576, 576), (1536, 576), (576, 1536), (192, 576)]
# Rows of an update and the weights `[out, in]`: SmolLM2's (8 sequences of 16 + 48), the 17 M model's (16 of 32 + 64).
TRAINING = [(512, layer) for layer in THIN_LAYERS] + [
    (1536, layer) for layer in [(256, 256), (688, 256), (256, 688)]
]


def inputs(rows, out, width, device):
    torch.manual_seed(0)
    return torch.randn(rows, width, device=device), torch.randn(out, width, device=device) / width**0.5


def named(rows, shape, what):
    return f"[{rows}, {shape[1]}] x {list(shape)} {what}"


def copies(weight):
    """The weight, and as many copies as it takes that none is in the cache."""
    return [weight, *(weight.clone() for _ in range(COLD_BYTES // weight.nbytes))]


def in_turns(product, weights):
    """The product with each of the weights in turn."""
    turns = itertools.cycle(weights)
    return lambda: product(next(turns))


def onednn(x, weight):
    """oneDNN, which PyTorch holds but does not ask, with a weight that `packed` has laid out for it."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


# torch.compile hands a product to the same library.
@beside("oneDNN", compiled=False, reference=False)
@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("shape", [*VOCABULARIES, *THIN_LAYERS], ids=str)
@torch.inference_mode()
def bench_decoding(measure, device, shape, batch):
    """oneDNN's copy of the weight is made before the time counts; ours reads the weight as it lies."""
    x, weight = inputs(batch, *shape, device)
    weights = copies(weight)
    laid_out = functools.cache(lambda: itertools.cycle([packed(each, batch, keep=False) for each in weights]))
    measure(
        named(batch, shape, "float32"),
        in_turns(lambda weight: kernels.linear(x, weight), weights),
        eager=in_turns(lambda weight: torch.nn.functional.linear(x, weight), weights),
        oneDNN=lambda: onednn(x, next(laid_out())),
    )


@beside("float32", "int8pack", compiled=False, reference=False)
@pytest.mark.parametrize("batch", [1, 2, 4, 8, 16, 32])
@pytest.mark.parametrize("shape", [*VOCABULARIES, *THIN_LAYERS], ids=str)
@torch.inference_mode()
def bench_decoding_int8(measure, device, shape, batch):
    """float32: our own product of the weight before it was quantised; int8pack: PyTorch's of the same int8 weight."""
    x, weight = inputs(batch, *shape, device)
    weights = copies(weight)
    quantised = [kernels.quantize(each, "int8") for each in weights]
    measure(
        named(batch, shape, "int8"),
        in_turns(lambda weight: kernels.linear(x, weight), quantised),
        eager=in_turns(lambda weight: torch.nn.functional.linear(x, weight), weights),
        float32=in_turns(lambda weight: kernels.linear(x, weight), weights),
        int8pack=in_turns(
            lambda weight: torch._weight_int8pack_mm(x, weight.codes, weight.scales), quantised
        ),
    )


@beside("int8", compiled=False, reference=False)
@torch.inference_mode()
def bench_call(measure, device):
    """What a call takes that has next to nothing to compute. int8: ours of an int8 weight."""
    x, weight = inputs(1, 8, 8, device)
    quantised = kernels.quantize(weight, "int8")
    measure(
        named(1, (8, 8), "call"),
        lambda: kernels.linear(x, weight),
        eager=lambda: torch.nn.functional.linear(x, weight),
        int8=lambda: kernels.linear(x, quantised),
    )


@beside("float32", compiled=False, reference=False)
@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("shape", [VOCABULARIES[0], THIN_LAYERS[1]], ids=str)
@torch.inference_mode()
def bench_decoding_nf4(measure, device, shape, batch):
    x, weight = inputs(batch, *shape, device)
    quantised = kernels.quantize(weight, "nf4")
    measure(
        named(batch, shape, "nf4"),
        lambda: kernels.linear(x, quantised),
        eager=lambda: torch.nn.functional.linear(x, weight),
        float32=lambda: kernels.linear(x, weight),
    )


@beside("oneDNN", "OpenBLAS", compiled=False, reference=False)
@pytest.mark.parametrize("rows, shape", TRAINING, ids=str)
@torch.inference_mode()
def bench_forward(measure, device, rows, shape):
    """The weight is packed once and used often, as in the micro-batches of an update."""
    x, weight = inputs(rows, *shape, device)
    laid_out = functools.cache(lambda: packed(weight, rows, keep=False))
    kernels.linear(x, weight)  # measures the providers
    measure(
        named(rows, shape, "forward"),
        lambda: kernels.linear(x, weight),
        eager=lambda: torch.nn.functional.linear(x, weight),
        oneDNN=lambda: onednn(x, laid_out()),
        OpenBLAS=in_numpy(lambda x, weight: x @ weight.T, x, weight),
    )


@beside("oneDNN", "OpenBLAS", compiled=False, reference=False)
@pytest.mark.parametrize("rows, shape", TRAINING, ids=str)
def bench_grad_input(measure, device, rows, shape):
    """The gradient of what went into a frozen layer; the forward before it does not count."""
    x, weight = inputs(rows, *shape, device)
    grad = torch.randn(rows, shape[0], device=device)
    laid_out = functools.cache(lambda: packed(weight, rows, transposed=True, keep=False))
    y = kernels.linear(x.requires_grad_(), weight)

    def ours():
        return torch.autograd.grad(y, x, grad, retain_graph=True)

    ours()  # measures the providers
    measure(
        named(rows, shape, "gradient of x"),
        ours,
        eager=through_autograd(x, weight, grad, of=0),
        oneDNN=lambda: onednn(grad, laid_out()),
        OpenBLAS=in_numpy(operator.matmul, grad, weight),
    )


@beside("oneDNN", "OpenBLAS", compiled=False, reference=False)
@pytest.mark.parametrize("rows, shape", TRAINING, ids=str)
def bench_grad_weight(measure, device, rows, shape):
    """Both operands are new each time: laying one out for oneDNN counts."""
    x, weight = inputs(rows, *shape, device)
    grad = torch.randn(rows, shape[0], device=device)
    y = kernels.linear(x, weight.requires_grad_())

    def ours():
        return torch.autograd.grad(y, weight, grad, retain_graph=True)

    def by_onednn():
        return onednn(grad.T.contiguous(), packed(x, shape[0], transposed=True, keep=False))

    ours()  # measures the providers
    measure(
        named(rows, shape, "gradient of the weight"),
        ours,
        eager=through_autograd(x, weight, grad, of=1),
        oneDNN=by_onednn,
        OpenBLAS=in_numpy(lambda grad, x: grad.T @ x, grad, x),
    )


def through_autograd(x, weight, grad, *, of):
    """PyTorch's gradient of x (of=0) or of the weight (of=1), asked for as ours is."""
    y = torch.nn.functional.linear(x, weight)
    return lambda: torch.autograd.grad(y, (x, weight)[of], grad, retain_graph=True)


def in_numpy(product, *tensors):
    """The product of the tensors' numbers by NumPy's library, which is OpenBLAS."""
    arrays = [tensor.detach().cpu().numpy() for tensor in tensors]
    return lambda: product(*arrays)
