"""Every operation has tiny cases, runs them on the simulated device, and declares what they cost."""

from __future__ import annotations

from importlib.util import find_spec

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_map

from fastrlhf.device import simulated
from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.cases import cases
from fastrlhf.kernels.verify import DTYPES, error_ratio

WITH_CASES = [name for name in dispatch.OPERATIONS if find_spec(f"fastrlhf.kernels.cases.{name}") is not None]

# Of tables what their rows need, of what is only written to nothing, of the cache what the tables and the window let a
# row see; the last is tested below, where every row is as long as it may be (how long rows are is on the device, and no
# cost may ask).
READS_A_PART = ("begin_step", "decode_attention", "end_step", "rope_cache")

ALL = [
    pytest.param(operation, dtype, name, id=f"{operation}-{str(dtype).removeprefix('torch.')}-{name}")
    for operation in WITH_CASES
    for dtype in (torch.float64, *DTYPES)
    for name in cases(operation, dtype)
]


def test_every_operation_has_cases_and_declares_its_cost():
    assert list(dispatch.OPERATIONS) == WITH_CASES, (
        "tiny inputs go into fastrlhf/kernels/cases/<operation>.py"
    )
    missing = [operation for operation in dispatch.OPERATIONS if not dispatch.has_cost(operation)]
    assert not missing, "decorate a function with @dispatch.costs beside the contract"


def test_an_operation_without_a_cost_costs_nothing_that_is_known():
    assert dispatch.cost("unpriced", torch.ones(3)) == Cost(0, 0, 0)


@pytest.mark.parametrize(("operation", "dtype", "name"), ALL)
def test_the_cost_is_what_the_operation_reads_and_writes(operation, dtype, name):
    args = cases(operation, dtype)[name]
    cost = dispatch.cost(operation, *args)
    given = tensors(args)
    before = [tensor.clone() for tensor in given]
    out = getattr(torch.ops.fastrlhf, operation)(*args)
    changed = [one for one, other in zip(given, before, strict=True) if not equal(one, other)]
    if operation in READS_A_PART:
        assert cost.read <= nbytes(*given)
    else:
        assert cost.read == nbytes(*given)
    assert cost.written == nbytes(*tensors(out), *changed)
    assert (cost.flops > 0) == (args[0].numel() > 0)


@pytest.mark.parametrize("name", ["grouped", "window, soft cap"])
def test_decoding_reads_the_positions_that_a_full_row_sees(name):
    query, *caches, table, lengths, scale, window, softcap = cases("decode_attention", torch.float64)[name]
    table = table[:3]  # so that no row names the last blocks
    query, lengths = query[:3], torch.full((3,), table.shape[1] * caches[0].shape[1], dtype=torch.int32)
    args = (query, *(cache.requires_grad_() for cache in caches), table, lengths, scale, window, softcap)
    out = dispatch.implementation("decode_attention", "reference", *args)(*args)
    seen = [grad != 0 for grad in torch.autograd.grad(out.square().sum(), caches)]
    assert 0 < seen[0].sum() < seen[0].numel()
    of_cache = sum(int(one.sum()) for one in seen) * caches[0].element_size()
    assert dispatch.cost("decode_attention", *args).read == nbytes(query, table, lengths) + of_cache


@pytest.mark.parametrize(("operation", "dtype", "name"), ALL)
def test_the_reference_is_right_on_its_cases(operation, dtype, name):
    args = cases(operation, dtype)[name]
    assert error_ratio(dispatch.implementation(operation, "reference", *args), operation, args, args) <= 0.5


@pytest.mark.parametrize("operation", WITH_CASES)
def test_it_runs_on_the_simulated_device_as_one_kernel_without_a_wait(operation):
    run = getattr(torch.ops.fastrlhf, operation)
    for name, args in cases(operation, torch.float32).items():
        given = tree_map(lambda leaf: leaf.clone() if isinstance(leaf, torch.Tensor) else leaf, args)
        expected = run(*given)
        with simulated.registered() as device:
            there = tree_map(lambda leaf: leaf.to("sim") if isinstance(leaf, torch.Tensor) else leaf, args)
            device.reset()
            with device.step():
                actual = run(*there)
            assert dict(device.launches) == {operation: 1}, name
            assert device.cost == dispatch.cost(operation, *args), name
            # what an operation changes in place is a result too
            for one, other in zip(tensors((actual, there)), tensors((expected, given)), strict=True):
                assert one.device.type == "sim" and equal(one.cpu(), other), name


def tensors(tree: object) -> list[torch.Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.nan_to_num(nan=7.0), other.nan_to_num(nan=7.0))


def test_every_operation_has_a_reference_and_every_triton_one_has_launches():
    for operation in dispatch.OPERATIONS:
        assert dispatch.written(operation, "reference"), operation
        # these launch the kernels of other operations, and none of their own
        if dispatch.written(operation, "triton") and operation not in ("adamw_each", "linear_ppo_loss"):
            # a product's gradients are launched by the module of the product
            stem = operation.removesuffix("_backward")
            modules = [f"tests.support.launches.{name}" for name in (operation, stem)]
            assert any(find_spec(name) for name in modules), f"tests/support/launches/{operation}.py"
