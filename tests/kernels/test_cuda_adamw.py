"""The CUDA body of `adamw`, unmodified, on the CPU (see tests/support/cuda_on_cpu.h)."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.kernels.adamw_numbers import adamw_numbers
from fastrlhf.kernels.cases import adamw as adamw_cases
from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.verify import error_ratio
from tests.support import cuda_on_cpu

both_orders = pytest.mark.parametrize("reversed_threads", [False, True], ids=["forward", "reversed"])
REST = (1e-2, 3, 1.0, 5.0, 0.9, 0.999, 1e-8, 0.1)


def adamw(parameters, gradients, exp_avg, exp_avg_sq, copy, *rest, reversed_threads=False):
    """Arguments as `fastrlhf.kernels.reference.adamw`."""
    tensors = (parameters, gradients, exp_avg, exp_avg_sq, copy, *rest[:4])
    addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    cuda_on_cpu.bodies().adamw(
        gradients.dtype == torch.bfloat16,
        addresses,
        parameters.numel(),
        adamw_numbers(*rest[4:]),
        reversed_threads,
    )


@both_orders
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_good_as_the_reference(dtype, reversed_threads):
    for name, args in adamw_cases.cases(dtype).items():

        def body(*given):
            return adamw(*given, reversed_threads=reversed_threads)

        assert error_ratio(body, "adamw", args, args) <= 1, name


@pytest.mark.parametrize("size", [1, 3, 4, 5, 1023, 1024, 1025, 2050])
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_tail(size, gradient_dtype):
    chunk = (normal(size, seed=1), normal(size, seed=2).to(gradient_dtype), *torch.zeros(2, size).unbind())
    args = (*chunk, torch.zeros(size, dtype=torch.bfloat16), None, None, None, torch.tensor(9.0), *REST)
    assert error_ratio(adamw, "adamw", args, args) <= 1


@pytest.mark.parametrize("which", range(5))
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_chunk_that_is_not_aligned_gives_the_same_bits_and_leaves_its_neighbours(which, gradient_dtype):
    size = 1030
    aligned = [
        normal(size, seed=1),
        normal(size, seed=2).to(gradient_dtype),
        torch.zeros(size),
        torch.zeros(size),
        torch.zeros(size, dtype=torch.bfloat16),
    ]
    there = [tensor.clone() for tensor in aligned]
    around = torch.full((size + 2,), 9.0).to(there[which].dtype)
    around[1:-1] = there[which]
    there[which] = around[1:-1]
    rest = (None, None, None, None, *REST)
    adamw(*aligned, *rest)
    adamw(*there, *rest)
    assert all(torch.equal(one, other) for one, other in zip(there, aligned, strict=True))
    assert around[0] == around[-1] == 9


@pytest.mark.parametrize("norm", [torch.nan, torch.inf])
def test_a_norm_that_is_not_finite_skips_the_step(norm):
    chunk = [normal(40, seed=seed) for seed in range(4)]
    before = [tensor.clone() for tensor in chunk]
    adamw(*chunk, None, None, None, None, torch.tensor(norm), *REST)
    assert all(torch.equal(one, other) for one, other in zip(chunk, before, strict=True))
