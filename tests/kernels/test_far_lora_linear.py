"""The Triton kernels of `lora_linear` and of quantising on more than 2^31 elements, of which a few are touched."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels import triton as backend
from fastrlhf.kernels.code_books import table
from tests.support.far import FAR, far_memory, programs_from

if not backend.interpreted() or backend.unavailable():
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

from fastrlhf.kernels.triton.lora_linear_down import CONFIGS as DOWN
from fastrlhf.kernels.triton.lora_linear_down import down_kernel
from fastrlhf.kernels.triton.lora_linear_product import CONFIGS as PRODUCT
from fastrlhf.kernels.triton.lora_linear_product import layer_product_kernel
from fastrlhf.kernels.triton.quantize_int8 import int8_kernel
from fastrlhf.kernels.triton.quantize_nf4 import nf4_kernel

CPU = torch.device("cpu")
WIDTH, RANK, FEW = 40, 3, 5


def far_rows_of(rows: torch.Tensor, first: int) -> torch.Tensor:
    """`rows` after `first` others."""
    far = far_memory((first + len(rows)) * rows.shape[1], rows.dtype).view(-1, rows.shape[1])
    far[first:] = rows
    return far


def test_rows_past_2_31_elements():
    config, product = DOWN[0], PRODUCT[0]
    first = (FAR // WIDTH // 16 + 1) * 16
    generator = torch.Generator().manual_seed(0)
    x, adapter = (
        torch.randn(FEW, WIDTH, generator=generator),
        torch.randn(1, RANK, WIDTH, generator=generator),
    )
    x_far = far_rows_of(x, first)
    hidden = far_rows_of(torch.full((FEW, RANK), torch.nan), first)
    offsets, scaling = torch.tensor([0, first + FEW], dtype=torch.int32), torch.tensor([2.0])
    rows = first + FEW
    with programs_from(first // config["BLOCK_M"]):
        arguments = x_far, adapter, offsets, scaling, hidden, rows, 1, WIDTH, RANK, WIDTH, 1
        launch_triton(down_kernel, (1, 1), CPU, *arguments, BLOCK_R=16, **config)
    torch.testing.assert_close(hidden[first:], 2 * x @ adapter[0].T)

    weight = torch.randn(WIDTH, WIDTH, generator=generator)
    y = far_rows_of(torch.full((FEW, WIDTH), torch.nan), first)
    switches = {"KIND": 0, "TRANSPOSED": False, "HAS_BIAS": False, "HAS_LOW_RANK": False}
    with programs_from(first // product["BLOCK_M"]):
        arguments = x_far, *(weight,) * 6, x, x, x, x, y, rows, WIDTH, WIDTH, 0, 1, 1, 1
        launch_triton(
            layer_product_kernel, (1,), CPU, *arguments, **switches, BLOCK_R=16, SWIZZLE=8, **product
        )
    torch.testing.assert_close(y[first:], x @ weight.T)


def test_weights_past_2_31_elements():
    first = FAR // 64 + 1
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))
    far = far_rows_of(weight, first)
    codes = far_memory((first + 4) * 64, torch.int8).view(-1, 64)
    scales = far_memory(first + 4, torch.float32)
    with programs_from(first):
        launch_triton(int8_kernel, (4,), CPU, far, codes, scales, 64, BLOCK=64, num_warps=1)
    assert torch.equal(scales[first:], weight.abs().amax(1) / 127)
    assert torch.equal(codes[first:], (weight / scales[first:, None]).round().to(torch.int8))

    first = (FAR // 64 // 4 + 1) * 4
    far = far_rows_of(weight, first)
    codes = far_memory((first + 4) * 32, torch.uint8)
    maxima = far_memory(first + 4, torch.float32)
    thresholds = table("nf4 thresholds", CPU)
    with programs_from(first // 4):
        arguments = far, codes, maxima, thresholds, first + 4, 64, 1
        launch_triton(nf4_kernel, (1,), CPU, *arguments, BLOCKS=4, num_warps=1)
    assert torch.equal(maxima[first:], weight.abs().amax(1))
