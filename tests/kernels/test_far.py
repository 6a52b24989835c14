"""Kernels on tensors of more than 2^31 elements, of which a few are touched."""

from __future__ import annotations

import math

import pytest
import torch

from fastrlhf.device.launch import launch_triton
from fastrlhf.kernels import triton as backend
from tests.kernels.native_cases import gae_case, ppo_case
from tests.support.far import FAR, far_memory, far_rows, programs_from

if not backend.interpreted() or backend.unavailable():
    pytest.skip("needs Triton's interpreter", allow_module_level=True)

import triton
import triton.language as tl

from fastrlhf.kernels.triton.gae import gae, gae_kernel
from fastrlhf.kernels.triton.ppo_loss import ppo_loss, ppo_loss_kernel
from tests.support.triton_bounds import OutOfBounds

CPU = torch.device("cpu")


@triton.jit
def sum_rows_kernel(source, target, stride, columns, WIDE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    if WIDE:
        row = row.to(tl.int64)
    at = tl.arange(0, BLOCK)
    numbers = tl.load(source + row * stride + at, mask=at < columns, other=0.0)
    tl.store(target + row, tl.sum(numbers, axis=0))


def far_copy(tensor: torch.Tensor, start: int) -> torch.Tensor:
    """The flattened `tensor` at the end of memory that starts `start` elements before."""
    memory = far_memory(start + tensor.numel(), tensor.dtype)
    memory[start:] = tensor.flatten()
    return memory


def test_the_instrument_finds_a_row_number_of_32_bits():
    rows = torch.arange(15.0).view(3, 5)
    far, sums = far_rows(rows), torch.zeros(3)
    assert torch.equal(far, rows) and far.stride(0) * 2 > FAR
    launch_triton(sum_rows_kernel, (3,), CPU, far, sums, far.stride(0), 5, WIDE=True, BLOCK=8)
    assert torch.equal(sums, rows.sum(1))
    with pytest.raises(OutOfBounds, match=r"load outside of float32\[3, 5\] in program \(2, 0, 0\)"):
        launch_triton(sum_rows_kernel, (3,), CPU, far, sums, far.stride(0), 5, WIDE=False, BLOCK=8)


def test_gae_of_rows_past_2_31_elements():
    rewards, values, mask, moments_mask, gamma, lam = case = gae_case((3, 40))
    first = FAR // 40 + 1
    inputs = [far_copy(tensor, first * 40).view(-1, 40) for tensor in case[:4]]
    outputs = [torch.full((3, 40), math.nan) for _ in range(2)]
    advantages, returns = (far_copy(output, first * 40).view(-1, 40) for output in outputs)
    moments = far_memory((first + 3) * 3, torch.float64).view(-1, 3)
    with programs_from(first):
        launch_triton(
            gae_kernel,
            (3,),
            CPU,
            *inputs,
            advantages,
            returns,
            moments,
            40,
            gamma,
            gamma * lam,
            BLOCK=64,
            num_warps=1,
        )
    near = gae(rewards, values, mask, moments_mask, gamma, lam)
    assert torch.equal(advantages[first:], near[0]) and torch.equal(returns[first:], near[1])
    assert torch.equal(moments[first:].sum(0), near[2])


def test_ppo_loss_of_tokens_past_2_31():
    case = ppo_case((2, 128), kl_coef=0.3, entropy_coef=0.1)
    *numbers, _ = case[13:]
    inputs = [far_copy(tensor, FAR) for tensor in case[:12]]
    gradients = [far_copy(torch.full((256,), math.nan), FAR) for _ in range(3)]
    first = FAR // 256
    sums = far_memory((first + 1) * 16, torch.float64).view(-1, 16)
    with programs_from(first):
        launch_triton(
            ppo_loss_kernel,
            (1,),
            CPU,
            *inputs,
            case[12],
            *gradients,
            sums,
            FAR + 256,
            *numbers,
            KL_ESTIMATOR=3,
            EVEN=True,
            BLOCK=256,
            num_warps=1,
        )
    _, stats, *near = ppo_loss(*case)
    for far, expected in zip(gradients, near, strict=True):
        assert torch.equal(far[FAR:].view(2, 128), expected)
    assert torch.equal(sums[first, : len(stats)], stats)
