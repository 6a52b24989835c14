"""Our AdamW steps as PyTorch's does after a clip, keeps its state, and resumes to the bit."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LinearLR

from fastrlhf import kernels
from fastrlhf.kernels.cpu import adamw_each as cpu_adamw
from fastrlhf.memory.adamw import AdamW
from tests.support.precision import assert_as_good_as

SHAPES = [(3, 5), (70,), (1,), (40, 33), (0, 4)]


def weights(dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(*shape, generator=generator).to(dtype)) for shape in SHAPES]


def gradients_of(parameters, step):
    generator = torch.Generator().manual_seed(100 + step)
    for parameter in parameters:
        parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)


def groups(parameters):
    """Two groups, of other learning rate and decay."""
    return [{"params": parameters[:2], "weight_decay": 0.1}, {"params": parameters[2:], "lr": 3e-3}]


def norm_of(parameters):
    return nn.utils.get_total_norm([parameter.grad for parameter in parameters])


def stepped(make, dtype=torch.float32, steps=5, max_norm=0.5, clip_first=False):
    """Weights, optimizer and schedule after a few steps."""
    parameters = weights(dtype)
    optimizer = make(groups(parameters))
    schedule = LinearLR(optimizer, 1.0, 0.1, 5)
    for step in range(steps):
        gradients_of(parameters, step)
        if clip_first:
            nn.utils.clip_grad_norm_(parameters, max_norm)
            optimizer.step()
        else:
            optimizer.step(grad_norm=norm_of(parameters), max_norm=max_norm)
        schedule.step()
    return parameters, optimizer, schedule


def torch_adamw(params, **options):
    return torch.optim.AdamW(params, lr=1e-2, weight_decay=0.0, **options)


def our_adamw(params):
    return AdamW(params, lr=1e-2, weight_decay=0.0)


@pytest.mark.parametrize("max_norm", [0.5, 1e9], ids=["clipped", "not clipped"])
@pytest.mark.parametrize("backend", ["cpu", "reference", None])
def test_steps_are_pytorch_s(max_norm, backend):
    exact, *_ = stepped(torch_adamw, torch.float64, max_norm=max_norm, clip_first=True)
    plain, *_ = stepped(torch_adamw, max_norm=max_norm, clip_first=True)
    with kernels.using(backend) if backend else torch.enable_grad():
        ours, *_ = stepped(our_adamw, max_norm=max_norm)
    start = weights()
    for number, shape in enumerate(SHAPES):
        assert_as_good_as(ours[number], plain[number], exact[number], name=str(shape), ulps=4)
        assert not ours[number].numel() or not torch.equal(ours[number], start[number])


def test_small_tensors_go_in_one_native_call(monkeypatch):
    calls, each = [], cpu_adamw.adamw_each
    monkeypatch.setattr(cpu_adamw, "adamw_each", lambda *args: calls.append(args) or each(*args))
    stepped(our_adamw, steps=3)
    assert len(calls) == 3 * 2, "one a step and group"


def test_gradients_stay_as_they_are():
    parameters = weights()
    gradients_of(parameters, 0)
    before = [parameter.grad.clone() for parameter in parameters]
    our_adamw(parameters).step(grad_norm=norm_of(parameters), max_norm=0.1)
    assert all(torch.equal(p.grad, grad) for p, grad in zip(parameters, before, strict=True))


@pytest.mark.parametrize("norm", [math.nan, math.inf])
def test_a_norm_that_is_not_finite_changes_nothing(norm):
    parameters, optimizer, _ = stepped(our_adamw)
    before, state = copy.deepcopy(parameters), copy.deepcopy(optimizer.state_dict()["state"])
    optimizer.step(grad_norm=torch.tensor(norm), max_norm=1.0)
    assert all(map(torch.equal, parameters, before))
    for number, saved in state.items():
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state_dict()["state"][number][name], saved[name])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_resumed_optimizer_goes_on_to_the_bit(tmp_path, dtype):
    whole, reference, _ = stepped(our_adamw, dtype, steps=4)
    parameters, optimizer, schedule = stepped(our_adamw, dtype, steps=2)
    torch.save(
        {"optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}, tmp_path / "saved.pt"
    )
    saved = torch.load(tmp_path / "saved.pt")
    again = our_adamw(groups(parameters))
    schedule = LinearLR(again, 1.0, 0.1, 5)
    again.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    for step in (2, 3):
        gradients_of(parameters, step)
        again.step(grad_norm=norm_of(parameters), max_norm=0.5)
        schedule.step()
    assert all(map(torch.equal, parameters, whole))
    for number, state in reference.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(again.state_dict()["state"][number][name], value), name


def test_state_goes_to_pytorch_s_and_back():
    _, optimizer, _ = stepped(torch_adamw, steps=2, clip_first=True)
    parameters, ours, _ = stepped(our_adamw, steps=2, clip_first=True)
    other = torch_adamw(groups(copy.deepcopy(parameters)))
    other.load_state_dict(ours.state_dict())
    ours.load_state_dict(optimizer.state_dict())
    copies = [p for group in other.param_groups for p in group["params"]]
    for each, opt in ((parameters, ours), (copies, other)):
        gradients_of(each, 7)
        opt.step()
    for mine, theirs in zip(parameters, copies, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_bfloat16_weights_have_a_master():
    """Updates far smaller than bfloat16's step add up."""
    weight = nn.Parameter(torch.ones(8, dtype=torch.bfloat16))
    optimizer = AdamW([weight], lr=1e-3, weight_decay=0.0)
    for _ in range(20):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert optimizer.state[weight]["master"].dtype == torch.float32
    torch.testing.assert_close(weight.float(), torch.full((8,), 0.98), rtol=0, atol=4e-3)
    assert torch.equal(weight, optimizer.state[weight]["master"].bfloat16())


def test_a_weight_that_is_not_contiguous():
    straight = nn.Parameter(torch.arange(12.0).view(3, 4))
    turned = nn.Parameter(torch.arange(12.0).view(3, 4).T.contiguous().T)
    assert not turned.is_contiguous()
    for weight in (straight, turned):
        weight.grad = torch.arange(12.0).view(3, 4).sin()
        AdamW([weight], lr=0.1).step()
    assert torch.equal(straight, turned)


def test_only_what_has_a_gradient_moves_and_each_counts_its_own_steps():
    first, second = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = AdamW([first, second], lr=0.1)
    for step in range(3):
        first.grad = torch.ones(3)
        second.grad = torch.ones(3) if step == 2 else None
        optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in (first, second)] == [3, 1]
    torch.testing.assert_close(second.detach(), torch.full((3,), 0.9 - 1e-3), rtol=1e-5, atol=1e-6)


def test_a_change_counts_as_one():
    """A weight's packed copy is made anew when its version says so."""
    weight = nn.Parameter(torch.ones(3))
    version = weight._version
    weight.grad = torch.ones(3)
    AdamW([weight]).step()
    assert weight._version > version


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr is -1.0"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\] is 1.0"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"weight_decay": -1.0}, "weight_decay is -1.0"),
    ],
)
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_numbers_out_of_range(options, message, backend):
    weight = nn.Parameter(torch.ones(3))
    weight.grad = torch.ones(3)
    with kernels.using(backend), pytest.raises(ValueError, match=message):
        AdamW([weight], **options).step()


def test_float16_is_refused():
    with pytest.raises(TypeError, match=r"a parameter has dtype torch\.float16"):
        AdamW([nn.Parameter(torch.ones(3, dtype=torch.float16))])
