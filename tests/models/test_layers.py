"""The layers' products with adapters, as a decoding step on a device computes them."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.device import simulated
from fastrlhf.kernels import QuantizedWeight, dequantize, quantize
from fastrlhf.models.decoder import Adapter, Projection
from fastrlhf.models.layers import project
from fastrlhf.models.linears import lora_product
from fastrlhf.models.one_adapter import scale_of, whole_batch
from tests.support.precision import assert_as_good_as

ROWS, WIDTH, OUT, RANK = 5, 48, 32, 4


def adapter(seed, dtype=torch.float32, bias=False):
    generator = torch.Generator().manual_seed(seed)
    down, up = (torch.randn(shape, generator=generator).to(dtype) for shape in ((RANK, WIDTH), (OUT, RANK)))
    return Adapter(down, up, torch.randn(OUT, generator=generator).to(dtype) if bias else None, 0.5 + seed)


def projections():
    """By name: a projection, and whether one operation computes it."""
    torch.manual_seed(0)
    weight, bias = torch.randn(OUT, WIDTH), torch.randn(OUT)
    one = (adapter(1),)
    return {
        "one adapter": (Projection(weight, None, one), True),
        "one adapter, bias": (Projection(weight, bias, one), True),
        "8 bits": (Projection(quantize(weight, "int8"), bias, one), True),
        "bfloat16 base": (Projection(weight.bfloat16(), bias.bfloat16(), one), True),
        "bfloat16 in all": (Projection(weight.bfloat16(), None, (adapter(1, torch.bfloat16),)), True),
        "bfloat16 adapter of a float32 base": (
            Projection(weight, bias, (adapter(1, torch.bfloat16),)),
            False,
        ),
        "two adapters": (Projection(weight, bias, (adapter(1), adapter(2))), False),
        "transposed": (Projection(weight.T.contiguous(), bias, one, transposed=True), False),
        "adapter with a bias": (Projection(weight, None, (adapter(1, bias=True),)), False),
        "no adapter": (Projection(weight, bias), False),
    }


def by_hand(x, projection, dtype):
    weight, bias, adapters, transposed = projection
    weight = dequantize(weight) if isinstance(weight, QuantizedWeight) else weight
    y = x.to(dtype) @ (weight if transposed else weight.T).to(dtype)
    if bias is not None:
        y = y + bias.to(dtype)
    for down, up, of_adapter, scaling in adapters:
        narrow = dtype if dtype == torch.float64 else down.dtype
        low_rank = (x.to(narrow) @ down.T.to(narrow) @ up.T.to(narrow)).to(dtype)
        y = y + scaling * (low_rank if of_adapter is None else low_rank + of_adapter.to(dtype))
    return y


def moved(projection):
    weight, bias, adapters, _ = projection
    if isinstance(weight, QuantizedWeight):
        weight = weight._replace(codes=weight.codes.to("sim"), scales=weight.scales.to("sim"))
    else:
        weight = weight.to("sim")
    there = [
        each._replace(**{k: v.to("sim") for k, v in each._asdict().items() if isinstance(v, torch.Tensor)})
        for each in adapters
    ]
    return projection._replace(
        weight=weight, bias=None if bias is None else bias.to("sim"), adapters=tuple(there)
    )


@pytest.mark.parametrize("name", projections())
def test_project_as_good_as_plain(name):
    projection, _ = projections()[name]
    dtype = torch.bfloat16 if name.startswith("bfloat16 ") and "adapter of" not in name else torch.float32
    x = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)
    exact, plain = by_hand(x, projection, torch.float64), by_hand(x, projection, dtype)
    y = project(x, projection)
    assert y.dtype == dtype
    assert_as_good_as(y, plain, exact, name=name)
    bounds = torch.tensor([0, ROWS], dtype=torch.int32)
    assert torch.equal(project(x, projection, bounds), y)


@pytest.mark.parametrize("name", projections())
def test_one_adapter_is_one_kernel(name):
    projection, is_one = projections()[name]
    dtype = torch.bfloat16 if name.startswith("bfloat16 ") and "adapter of" not in name else torch.float32
    with simulated.registered() as device, torch.no_grad():
        there, x = moved(projection), torch.ones(ROWS, WIDTH, dtype=dtype).to("sim")
        project(x, there)  # which makes the adapter's constants
        device.reset()
        project(x, there)
        assert (dict(device.launches) == {"lora_linear": 1}) == is_one


def test_constants_are_made_once_and_can_be_kept_for_a_backward():
    with torch.inference_mode():
        bounds, scale = whole_batch(7, torch.device("cpu")), scale_of(0.25, torch.device("cpu"))
    assert bounds.tolist() == [0, 7] and bounds.dtype == torch.int32
    assert scale.tolist() == [0.25] and scale.dtype == torch.float32
    assert whole_batch(7, torch.device("cpu")) is bounds and scale_of(0.25, torch.device("cpu")) is scale
    assert not bounds.is_inference() and not scale.is_inference()
    x = torch.randn(7, WIDTH, requires_grad=True)
    down, up, _, _ = adapter(1)
    lora_product(x, torch.randn(OUT, WIDTH), None, down, up, 0.25).sum().backward()
    assert x.grad.isfinite().all()
