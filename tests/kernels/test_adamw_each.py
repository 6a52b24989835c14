from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.cases.adamw_each import cases, tensors

OPERATION = "adamw_each"
SHAPES = [(3,), (0,), (5, 7), (), (1, 300)]
OPTIONS = {"lr": 1e-2, "step": 3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1, "grad_scale": 2.0}


def moved(lists, device):
    return [[tensor.to(device).clone() for tensor in each] for each in lists]


def one_by_one(lists, **options):
    *lists, copies = lists
    for number, row in enumerate(zip(*lists, strict=True)):
        copy = copies[number].view(-1) if copies else None
        kernels.adamw(*(tensor.view(-1) for tensor in row), bfloat16_copy=copy, **options)


@pytest.mark.parametrize("norm", [None, 9.0, torch.nan], ids=str)
@pytest.mark.parametrize("copied", [False, True], ids=["no copies", "copies"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_each_tensor_gets_the_bits_that_it_gets_alone(device, dtype, copied, norm):
    lists = moved(tensors(dtype, SHAPES, copied), device)
    alone = moved(lists, device)
    options = {**OPTIONS}
    if norm is not None:
        options |= {"grad_norm": torch.tensor(norm, device=device), "max_norm": 5.0}
    kernels.adamw_each(*lists[:4], bfloat16_copies=lists[4] or None, **options)
    one_by_one(alone, **options)
    for ours, theirs in zip(lists, alone, strict=True):
        assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))
    unchanged = norm is not None and norm != norm
    assert torch.equal(lists[0][0].cpu(), tensors(dtype, SHAPES, copied)[0][0]) == unchanged


def test_it_is_one_operation_where_it_can_be(device, monkeypatch):
    calls, call = [], dispatch.call
    monkeypatch.setattr(dispatch, "call", lambda *args: calls.append(args[0]) or call(*args))
    kernels.adamw_each(*moved(tensors(torch.float32, SHAPES, False), device)[:4], **OPTIONS)
    assert calls == ["adamw_each"]


def test_what_cannot_be_one_operation_is_stepped_all_the_same(device):
    lists = moved(tensors(torch.float32, SHAPES, True), device)
    lists[1][2] = lists[1][2].bfloat16()  # two dtypes of gradients, and a copy of some
    lists[4][0] = None
    alone = [[None if tensor is None else tensor.clone() for tensor in each] for each in lists]
    kernels.adamw_each(*lists[:4], bfloat16_copies=lists[4], **OPTIONS)
    for *row, copy in zip(*alone, strict=True):
        options = {**OPTIONS, "bfloat16_copy": None if copy is None else copy.view(-1)}
        kernels.adamw(*(tensor.view(-1) for tensor in row), **options)
    assert all(torch.equal(one, other) for one, other in zip(lists[0], alone[0], strict=True))


def test_options_that_are_tensors_stay_on_the_device(device):
    lists = moved(tensors(torch.float32, SHAPES, False), device)
    alone = moved(lists, device)
    options = OPTIONS | {"lr": torch.tensor(1e-2, device=device)}
    kernels.adamw_each(*lists[:4], **options)
    one_by_one(alone, **options)
    assert all(torch.equal(one, other) for one, other in zip(lists[0], alone[0], strict=True))


def test_autograd_knows_that_they_changed(device):
    lists = moved(tensors(torch.float32, SHAPES, True), device)
    before = [[tensor._version for tensor in each] for each in lists]
    kernels.adamw_each(*lists[:4], bfloat16_copies=lists[4], **OPTIONS)
    changed = [
        [tensor._version > version for tensor, version in zip(each, versions, strict=True)]
        for each, versions in zip(lists, before, strict=True)
    ]
    assert [all(each) for each in changed] == [True, False, True, True, True]
    assert not any(changed[1])


def test_no_tensor_at_all():
    kernels.adamw_each([], [], [], [], **OPTIONS)


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"lr": -1.0}, "lr"),
        ({"step": 0}, "step"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]"),
        ({"max_norm": 1.0}, "grad_norm is None"),
        ({"grad_norm": torch.ones(2)}, "grad_norm has shape"),
    ],
)
def test_errors(change, problem):
    lists = tensors(torch.float32, SHAPES, False)[:4]
    with pytest.raises(ValueError, match=problem):
        kernels.adamw_each(*lists, **(OPTIONS | change))


def test_tensors_that_do_not_fit_are_named():
    lists = tensors(torch.float32, [(3,), (4,)], False)[:4]
    with pytest.raises(ValueError, match="gradients has shape"):
        kernels.adamw_each(lists[0], lists[1][::-1], *lists[2:], **OPTIONS)


@pytest.mark.parametrize("name", ["clipped, copied", "not clipped"])
def test_opcheck(name):
    torch.library.opcheck(torch.ops.fastrlhf.adamw_each.default, cases(torch.float32)[name])
