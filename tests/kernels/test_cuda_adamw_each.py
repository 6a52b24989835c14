"""The CUDA body of `adamw_each`, unmodified, on the CPU (see tests/support/cuda_on_cpu.h)."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.kernels.adamw_numbers import adamw_numbers
from fastrlhf.kernels.cases import adamw_each as each_cases
from fastrlhf.kernels.cuda.adamw_each import addresses_and_sizes
from fastrlhf.kernels.verify import error_ratio
from tests.kernels.test_cuda_adamw import adamw
from tests.support import cuda_on_cpu

REST = (1e-2, 3, 2.0, 5.0, 0.9, 0.999, 1e-8, 0.1)


def adamw_each(grad_norm, *rest, reversed_threads=False):
    """Arguments as `fastrlhf.kernels.reference.adamw_each`."""
    *lists, _, _, _, _, _, _, _, _ = rest
    cuda_on_cpu.bodies().adamw_each(
        lists[1][0].dtype == torch.bfloat16,
        *addresses_and_sizes(*lists),
        grad_norm.data_ptr(),
        adamw_numbers(*rest[5:]),
        reversed_threads,
    )


@pytest.mark.parametrize("reversed_threads", [False, True], ids=["forward", "reversed"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_good_as_the_reference(dtype, reversed_threads):
    for name, args in each_cases.cases(dtype).items():

        def body(*given):
            return adamw_each(*given, reversed_threads=reversed_threads)

        assert error_ratio(body, "adamw_each", args, args) <= 1, name


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 129])
@pytest.mark.parametrize("gradient_dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_tensor_is_found_whatever_their_number_and_sizes(count, gradient_dtype):
    # empty ones at the beginning, in between and at the end, and some of several blocks
    shapes = [((0, 1, 2500, 1024, 0, 1025)[number % 6],) for number in range(count)]
    lists = each_cases.tensors(gradient_dtype, shapes, True)
    alone = [[tensor.clone() for tensor in each] for each in lists]
    norm = torch.tensor(9.0)
    adamw_each(norm, *lists, *REST)
    for row in zip(*alone, strict=True):
        adamw(*row, None, None, None, norm, *REST)
    for ours, theirs in zip(lists, alone, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_tensors_that_are_not_aligned_give_the_same_bits():
    lists = each_cases.tensors(torch.float32, [(1030,), (6,)], True)
    apart = [[torch.cat([tensor[:1], tensor])[1:] for tensor in each] for each in lists]
    norm = torch.tensor(9.0)
    adamw_each(norm, *lists, *REST)
    adamw_each(norm, *apart, *REST)
    for ours, theirs in zip(lists, apart, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
