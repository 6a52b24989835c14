"""The CUDA bodies of `quantize` and `dequantize`, unmodified, on the CPU: the reference's bits."""

from __future__ import annotations

import math

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels.code_books import table
from fastrlhf.kernels.cuda.dequantize import dequantize_arguments
from fastrlhf.kernels.cuda.quantize import quantize_arguments
from fastrlhf.kernels.reference.dequantize import dequantize as reference_dequantize
from fastrlhf.kernels.reference.quantize import quantize as reference_quantize
from tests.support.cuda_on_cpu import bodies

both_orders = pytest.mark.parametrize("reversed_threads", [False, True], ids=["forward", "reversed"])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1, 1), (9, 64), (17, 65), (8, 127), (3, 321), (0, 5), (5, 0)]


def weights(shape, dtype, seed=0):
    """Rows of different scales; one of zeros, one with a block of them."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator) * torch.exp2(torch.arange(shape[0]) % 9 - 4.0)[:, None]
    weight[1:2] = 0
    weight[2:3, :64] = 0
    return weight.to(dtype)


def quantize(weight, format, reversed_threads=False):
    arguments, outputs = quantize_arguments(weight, format)
    bodies().quantize(*arguments, reversed_threads)
    return outputs


def dequantize(weight, dtype, reversed_threads=False):
    arguments, result = dequantize_arguments(weight[:4], weight.in_features, dtype)
    bodies().dequantize(*arguments, reversed_threads)
    return result


@both_orders
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_codes_and_scales_are_the_reference_s_bit_for_bit(format, dtype, reversed_threads):
    for shape in SHAPES:
        weight = weights(shape, dtype)
        expected = reference_quantize(weight, format)
        for one, other in zip(quantize(weight, format, reversed_threads), expected, strict=True):
            assert torch.equal(one, other), shape


@both_orders
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("format", ["int8", "nf4"])
def test_back_again_bit_for_bit(format, dtype, reversed_threads):
    for shape in SHAPES:
        weight = kernels.quantize(weights(shape, torch.float32), format)
        expected = reference_dequantize(*weight[:5], dtype)
        assert torch.equal(dequantize(weight, dtype, reversed_threads), expected), shape


def test_ties_go_to_the_lower_code():
    thresholds = table("nf4 thresholds", torch.device("cpu"))
    weight = torch.cat([thresholds, torch.ones(1)])[None]
    codes = quantize(weight, "nf4")[0][0, :8]
    assert torch.stack([codes >> 4, codes & 15], dim=1).flatten().tolist() == list(range(16))
    halves = torch.tensor([[254.0, 1.0, 3.0, -5.0]])
    assert quantize(halves, "int8")[0].tolist() == [[127, 0, 2, -2]]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_spoils_its_row_or_block_and_no_other(bad):
    weight = weights((4, 130), torch.float32, seed=3)
    weight[3, 70] = bad
    scales = quantize(weight, "int8")[1]
    assert not scales[3].isfinite() and scales[:3].isfinite().all()
    maxima = quantize(weight, "nf4")[1]
    assert not maxima[3, 1].isfinite() and maxima.isfinite().sum() == 11


@pytest.mark.parametrize("scale", [1e-44, 1e-38, 3e38])
def test_extremes(scale):
    weight = (torch.linspace(-1, 1, 130)[None] * scale).contiguous()
    for format in ("int8", "nf4"):
        for one, other in zip(quantize(weight, format), reference_quantize(weight, format), strict=True):
            assert torch.equal(one, other)
