"""The CUDA body of `group_advantages`, unmodified, on the CPU (see tests/support/cuda_on_cpu.h)."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.kernels.cases import group_advantages as group_cases
from fastrlhf.kernels.cases import normal
from fastrlhf.kernels.group_advantages import GROUP_ESTIMATORS
from fastrlhf.kernels.group_rows import group_rows
from fastrlhf.kernels.verify import error_ratio
from tests.support import cuda_on_cpu

both_orders = pytest.mark.parametrize("reversed_threads", [False, True], ids=["forward", "reversed"])


def group_advantages(scores, mask, groups, group_size, estimator, epsilon, *, reversed_threads=False):
    """Arguments as `fastrlhf.kernels.reference.group_advantages`."""
    order, starts = (None, None) if groups is None else group_rows(groups)
    count = len(scores) // group_size if groups is None else len(scores)
    outputs = torch.full_like(scores, torch.nan), torch.empty(3, dtype=torch.float64)
    tensors = (scores, mask, order, starts, *outputs)
    cuda_on_cpu.bodies().group_advantages(
        scores.dtype == torch.bfloat16,
        [0 if tensor is None else tensor.data_ptr() for tensor in tensors],
        count,
        group_size,
        GROUP_ESTIMATORS.index(estimator) + 1,
        epsilon,
        reversed_threads,
    )
    return outputs


@both_orders
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_as_good_as_the_reference(dtype, reversed_threads):
    for name, args in group_cases.cases(dtype).items():

        def body(*given):
            return group_advantages(*given, reversed_threads=reversed_threads)

        assert error_ratio(body, "group_advantages", args, args) <= 1, name


@pytest.mark.parametrize("group_size", [1, 2, 31, 32, 33, 65])
@pytest.mark.parametrize("estimator", GROUP_ESTIMATORS)
def test_every_size_of_group(group_size, estimator):
    scores = normal(group_size * 6, seed=4) * 10
    mask = normal(group_size * 6, seed=5) > -1 if group_size > 2 else None
    args = (scores, mask, None, group_size, estimator, 1e-4)
    assert (
        error_ratio(group_advantages, "group_advantages", args, args) <= 1
    )  # NaN where the reference has it


def test_the_order_of_threads_changes_no_bit():
    args = (normal(330, seed=1) * 2.0 ** normal(330, seed=2).mul(20).round(), None, None, 33, "dr_grpo", 1e-4)
    for one, other in zip(
        group_advantages(*args), group_advantages(*args, reversed_threads=True), strict=True
    ):
        assert torch.equal(one, other)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_stays_in_its_group_and_an_unknown_group_is_nan(bad):
    groups = torch.tensor([0, 1, 0, 1, 0, 8, -1, 2**40])
    scores = torch.tensor([1.0, bad, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0])
    args = (scores, None, groups, 1, "grpo", 1e-4)
    advantages, moments = group_advantages(*args)
    assert advantages.isnan().tolist() == [False, True, False, True, False, True, True, True]
    assert moments[0] == 5
    assert error_ratio(group_advantages, "group_advantages", args, args) <= 1
