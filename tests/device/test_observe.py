"""Operations tell whoever observes; the simulated device counts each as one kernel with the cost that it declares."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels
from fastrlhf.device import simulated
from fastrlhf.device.observe import Cost, host_waits, observing, reason_to_wait
from fastrlhf.kernels import dispatch
from fastrlhf.models.one_adapter import scale_of, whole_batch

REWARDS = torch.ones(2, 3)
MASK = torch.ones(2, 3).bool()
GAE_COST = Cost(read=2 * 24 + 2 * 6, written=2 * 24 + 24, flops=60)


def test_an_observer_gets_each_operation_and_runs_it():
    seen = []

    def watch(kernel, args):
        seen.append((kernel.operation, kernel.cost(*args), args[0].shape))
        return kernel.run(*args)

    with observing(watch):
        inside = kernels.gae(REWARDS, REWARDS, MASK)
        dispatch.choose("gae", REWARDS)(REWARDS, REWARDS, MASK, MASK, 1.0, 0.95)
    outside = kernels.gae(REWARDS, REWARDS, MASK)
    assert torch.equal(inside.advantages, outside.advantages)
    assert seen == [("gae", GAE_COST, (2, 3))] * 2


def test_the_innermost_observer_is_the_one_that_watches():
    seen = []
    with observing(lambda kernel, args: seen.append("outer")):
        with observing(lambda kernel, args: seen.append("inner") or kernel.run(*args)):
            kernels.gae(REWARDS, REWARDS, MASK)
        dispatch.call("gae", REWARDS)
    assert seen == ["inner", "outer"]


def test_reasons_to_wait_nest():
    assert reason_to_wait() is None
    with host_waits("a"):
        with pytest.raises(ZeroDivisionError), host_waits("b"):
            assert reason_to_wait() == "b"
            _ = 1 / 0
        assert reason_to_wait() == "a"
    assert reason_to_wait() is None


class TestOnTheSimulatedDevice:
    @pytest.mark.parametrize("directly", [False, True])
    def test_an_operation_is_one_launch_with_its_own_cost(self, device, directly):
        rewards, mask = REWARDS.to("sim"), MASK.to("sim")
        device.reset()
        with device.step():
            if directly:  # as decoding does
                result = dispatch.choose("gae", rewards)(rewards, rewards, mask, mask, 1.0, 0.95)
            else:
                result = kernels.gae(rewards, rewards, mask)
        assert (dict(device.launches), device.cost) == ({"gae": 1}, GAE_COST)
        for one, other in zip(result, kernels.gae(REWARDS, REWARDS, MASK), strict=True):
            assert one.device.type == "sim" and torch.equal(one.cpu(), other)

    def test_the_backward_too(self, device):
        hidden, weight = (torch.randn(5, 4, device="sim", requires_grad=True) for _ in range(2))
        targets = torch.arange(5, device="sim")
        device.reset()
        kernels.linear_logprob(hidden, weight, targets).logprobs.sum().backward()
        assert device.launches["linear_logprob"] == device.launches["linear_logprob_backward"] == 1
        assert hidden.grad.device.type == weight.grad.device.type == "sim"

    def test_it_runs_our_cpu_kernels(self, device, monkeypatch):
        seen = []
        monkeypatch.setattr(
            dispatch, "_choose", lambda operation, tensors: lambda *args: seen.extend(tensors) or tensors[0]
        )
        dispatch.call("unpriced", torch.ones(2, device="sim"))
        assert [(type(tensor), tensor.device.type) for tensor in seen] == [(torch.Tensor, "cpu")]

    def test_tensors_of_the_host_do_not_mix(self, device):
        with pytest.raises(
            ValueError, match="all tensors must be on one device: rewards on sim:0, values on cpu"
        ):
            kernels.gae(REWARDS.to("sim"), REWARDS, MASK)
        with pytest.raises(RuntimeError, match="gae: expected all tensors to be on the same device"):
            dispatch.call("gae", REWARDS.to("sim"), REWARDS, MASK, MASK, 1.0, 0.95)

    def test_what_runs_on_the_cpu_meanwhile_is_not_counted(self, device):
        kernels.gae(REWARDS, REWARDS, MASK)
        assert not device.launches

    def test_an_operation_in_place_gives_its_own_tensor_back(self, device, monkeypatch):
        monkeypatch.setattr(dispatch, "_choose", lambda *_: lambda tensor: tensor.add_(1))
        x = torch.zeros(3, device="sim")
        assert dispatch.call("unpriced", x) is x
        assert x.tolist() == [1, 1, 1]

    def test_a_freed_argument_is_refused(self, device):
        x = torch.zeros(3, device="sim")
        simulated.free(x)
        with pytest.raises(RuntimeError, match="gae touches memory"):
            dispatch.call("gae", x)


def test_an_adapters_constants_are_kept_while_the_same_one_watches():
    cpu = torch.device("cpu")
    kept = scale_of(0.5, cpu), whole_batch(3, cpu)
    assert scale_of(0.5, cpu) is kept[0] and whole_batch(3, cpu) is kept[1]
    with observing(lambda kernel, args: kernel.run(*args)):
        assert scale_of(0.5, cpu) is not kept[0] and whole_batch(3, cpu) is not kept[1]
