from __future__ import annotations

import copy
import io
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from fastrlhf.device import simulated
from fastrlhf.device.ledger import HostWaitError, UseAfterFreeError
from fastrlhf.device.observe import Cost, host_waits

KB = 1024


def ones(*shape, **options):
    return torch.ones(*shape, device="sim", **options)


def test_values_are_those_of_the_cpu(device):
    torch.manual_seed(0)
    x, w = torch.randn(3, 4, requires_grad=True), torch.randn(4, 4, requires_grad=True)
    on_sim = [tensor.detach().to("sim").requires_grad_() for tensor in (x, w)]
    for a, b in ((x, w), on_sim):
        torch.tanh(a @ b).square().sum().backward()
    for one, other in zip((x, w), on_sim, strict=True):
        assert other.grad.device == torch.device("sim:0")
        assert torch.equal(one.grad, other.grad.cpu())


def test_makers_of_tensors_take_the_device(device):
    assert torch.tensor([1, 2], device="sim").tolist() == [1, 2]
    assert torch.as_tensor(3.0, device=torch.device("sim", 0)).device.type == "sim"
    assert torch.tensor(1.0, device="sim", requires_grad=True).is_leaf
    assert torch.arange(3, device="sim").tolist() == [0, 1, 2]
    assert ones(2).new_tensor([5.0]).device.type == "sim"
    assert torch.tensor([1]).device.type == "cpu", "others are as ever"


def test_modules_can_be_made_without_values_meanwhile_and_afterwards():
    """transformers loads models so; what is not made there would keep whatever its memory held."""
    torch.utils._device._device_constructors.cache_clear()
    with simulated.registered(), torch.device("meta"):
        assert torch.empty(2).is_meta and torch.zeros(2).is_meta and torch.tensor([1.0]).is_meta
    with torch.device("meta"):
        assert torch.empty(2).is_meta and torch.zeros(2).is_meta and torch.tensor([1.0]).is_meta


def test_it_is_there_only_where_it_is_registered():
    with simulated.registered():
        kept = ones(3)
    for use in (lambda: ones(3), lambda: kept + 1, lambda: torch.ones(3).to("sim")):
        with pytest.raises(RuntimeError, match="sim:0 is not registered"):
            use()
    with simulated.registered() as device:
        assert device.live == 0
        assert (kept + 1).tolist() == [2, 2, 2]


def test_importing_the_package_registers_nothing():
    code = "import fastrlhf.device.simulated, torch; print(torch._C._get_privateuse1_backend_name())"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "privateuseone\n"


def test_it_can_be_registered_after_autograd_ran():
    code = (
        "import torch\nfrom fastrlhf.device import simulated\ntorch.ones(1, requires_grad=True).backward()\n"
        "with simulated.registered():\n  x = torch.ones(1, device='sim', requires_grad=True)\n  (x * 3).backward()\n"
        "  print(x.grad.tolist())"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[3.0]\n"


def silu_loss():
    x = ones(KB, requires_grad=True)
    y = x * x
    return y, (nn.functional.silu(y) * x).sum()


def test_errors_in_the_backward_arrive():
    with simulated.registered(capacity=20 * KB):
        _, loss = silu_loss()
        with pytest.raises(torch.OutOfMemoryError, match="sim:0 is out of memory"):
            loss.backward()
    with simulated.registered():
        kept, loss = silu_loss()
        simulated.free(kept)
        with pytest.raises(UseAfterFreeError):
            loss.backward()
        _, loss = silu_loss()
        loss.backward()


def test_loaders_do_not_pin_memory_for_it(device):
    assert not torch.accelerator.is_available()
    assert torch.accelerator.current_accelerator(check_available=True) is None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="'pin_memory' argument")
        (batch,) = torch.utils.data.DataLoader([torch.ones(2)], pin_memory=True)
    assert batch.device.type == "cpu"


class TestMemory:
    def test_counts_storages_while_a_tensor_or_a_view_holds_them(self, device):
        x = ones(KB)
        assert device.live == device.peak == 4 * KB
        view, other = x[:10].view(2, 5), x.detach()
        del x
        assert device.live == 4 * KB, "views hold it"
        y = view + 1
        assert device.live == 4 * KB + 40
        del view, other, y
        assert (device.live, device.peak) == (0, 4 * KB + 40)
        assert not device.holders

    def test_what_autograd_keeps_counts_until_the_backward(self, device):
        x = ones(KB, requires_grad=True)
        loss = (x.exp() * 2).sum()
        assert device.live == 4 * KB * 2 + 4, "x, its exponential and the loss"
        loss.backward()
        del loss
        assert device.live == 4 * KB * 2, "x and its gradient"

    def test_a_tensor_that_is_made_larger_counts_anew(self, device):
        x = torch.empty(0, device="sim")
        torch.arange(8, device="sim", out=x)
        assert device.live == 32
        assert x.tolist() == list(range(8))

    def test_out_of_memory_names_what_holds_it(self):
        with simulated.registered(capacity=100 * KB) as device:
            with device.label("policy"):
                weights = [ones(4 * KB), ones(4 * KB)]
            cache = torch.zeros(8, KB, device="sim")
            with pytest.raises(torch.OutOfMemoryError) as error:
                torch.zeros(10, KB, device="sim")
            assert str(error.value) == (
                "sim:0 is out of memory: aten::empty [10, 1024] float32 asks for 0.041 MB, and of 0.102 MB "
                "0.0369 MB are free. Held: 0.0328 MB by policy (2), 0.0328 MB by aten::empty [8, 1024] float32 (1)"
            )
            del cache
            assert torch.zeros(10, KB, device="sim").shape == (10, KB)
            del weights

    def test_the_peak_remembers_its_holders(self, device):
        with device.label("a"):
            a = ones(KB)
        with device.label("b"):
            b = ones(2 * KB)
        del a, b
        assert device.at_peak == {"a": 4 * KB, "b": 8 * KB}
        device.reset()
        assert device.peak == 0

    def test_fresh_memory_is_poisoned(self, device):
        assert torch.empty(3, device="sim").isnan().all()
        assert torch.empty_like(ones(3, dtype=torch.bfloat16)).isnan().all()
        assert ones(2).new_empty(2, dtype=torch.int32).tolist() == [-1, -1]

    def test_freed_memory_is_poisoned(self, device):
        x = ones(3)
        raw = x.elem
        del x
        assert raw.isnan().all(), "who kept the address reads NaN"

    def test_memory_that_was_given_back_is_not_to_be_touched(self, device):
        x = ones(KB)
        view = x[:3]
        simulated.free(x)
        assert device.live == 0
        for use in (lambda: view + 1, lambda: view.cpu(), lambda: ones(3).copy_(view)):
            with pytest.raises(
                UseAfterFreeError, match=r"memory of aten::empty \[1024\] float32 that was given back"
            ):
                use()

    def test_without_poison_memory_is_as_the_cpu_left_it(self):
        with simulated.registered(poison=False):
            x = ones(3)
            raw = x.elem
            del x
            assert raw.tolist() == [1, 1, 1]

    def test_torch_sim_has_the_names_of_torch_cuda(self):
        with simulated.registered(capacity=10 * KB):
            x = ones(KB)
            assert torch.sim.memory_allocated() == torch.sim.max_memory_allocated() == 4 * KB
            assert torch.sim.mem_get_info() == (6 * KB, 10 * KB)
            del x
            torch.sim.empty_cache()
            assert (torch.sim.memory_allocated(), torch.sim.max_memory_allocated()) == (0, 4 * KB)
            assert (torch.sim.device_count(), torch.sim.current_device()) == (1, 0)
            torch.manual_seed(3)
            first = torch.randn(2, device="sim")
            torch.manual_seed(3)
            assert torch.equal(torch.randn(2), first.cpu()), "random numbers are the CPU's"


class TestModules:
    def test_tied_weights_stay_tied_both_ways(self, device):
        first, second = nn.Linear(4, 4), nn.Linear(4, 4)
        second.weight = first.weight
        model = nn.Sequential(first, second)
        before = first.weight
        model.to("sim")
        assert first.weight is second.weight is before
        assert isinstance(first.weight, nn.Parameter) and first.weight.device.type == "sim"
        assert device.live == 4 * (16 + 4 + 4)
        model(ones(2, 4)).sum().backward()
        assert first.weight.grad.device.type == "sim"
        model.to("cpu")
        assert first.weight is second.weight is before
        assert type(first.weight) is nn.Parameter and first.weight.grad.device.type == "cpu"
        assert device.live == 0

    def test_addresses_tell_what_is_shared(self, device):
        x = ones(4)
        assert x.data_ptr() == x.view(2, 2).data_ptr() != ones(4).data_ptr()
        assert x.untyped_storage().data_ptr() == x[1:].untyped_storage().data_ptr()

    def test_the_data_of_a_parameter_can_be_another_piece_of_memory(self, device):
        chunk = torch.arange(10.0, device="sim")
        weight = nn.Parameter(ones(2))
        weight.data = chunk[2:5]
        assert weight.tolist() == (weight * 1).tolist() == [2, 3, 4]
        assert weight.data_ptr() == chunk[2:].data_ptr()
        chunk.zero_()
        assert weight.tolist() == [0, 0, 0]
        with pytest.raises(RuntimeError, match="cannot take the data of one on cpu"):
            weight.data = torch.ones(3)

    def test_copies_and_files(self, device):
        layer = nn.Linear(2, 2).to("sim")
        copied = copy.deepcopy(layer)
        assert isinstance(copied.weight, nn.Parameter) and copied.weight.device.type == "sim"
        assert (
            torch.equal(copied.weight, layer.weight) and copied.weight.data_ptr() != layer.weight.data_ptr()
        )
        file = io.BytesIO()
        torch.save(layer.state_dict(), file)
        file.seek(0)
        loaded = torch.load(file)
        assert loaded["weight"].device.type == "cpu", "as a file that was written with a GPU is read without"
        assert torch.equal(loaded["weight"], layer.weight.cpu())

    def test_gradient_checkpointing(self, device):
        layer = nn.Linear(4, 4).to("sim")
        torch.utils.checkpoint.checkpoint(layer, ones(2, 4), use_reentrant=False).sum().backward()
        assert layer.weight.grad.tolist() == [[2.0] * 4] * 4


class TestRules:
    def test_tensors_of_the_host_do_not_mix(self, device):
        x = ones(3)
        for use in (
            lambda: x + torch.ones(3),
            lambda: torch.cat([torch.ones(2), x]),
            lambda: x[torch.tensor([0])],
            lambda: x.add_(torch.ones(3)),
        ):
            with pytest.raises(
                RuntimeError, match="expected all tensors to be on the same device, but found"
            ):
                use()
        assert (x + torch.tensor(2.0)).tolist() == [3, 3, 3], "a number may come from the host"

    @pytest.mark.parametrize(
        "use",
        [
            lambda x: x.sum().item(),
            lambda x: bool((x > 0).all()),
            lambda x: x.nonzero(),
            lambda x: x[x > 0],
            lambda x: x.masked_select(x > 0),
            lambda x: x.index_put_((x > 0,), torch.zeros((), device="sim")),
            lambda x: torch.equal(x, x),
            lambda x: x.unique(),
            lambda x: x.cpu(),
            lambda x: x.tolist(),
            lambda x: torch.ones(3).copy_(x),
            lambda x: torch.ones(3).to("sim"),
            lambda x: torch.sim.synchronize(),
            lambda x: torch.sim.current_stream().synchronize(),
            lambda x: torch.zeros_like(x).masked_scatter(x > 0, x.requires_grad_()).sum().backward(),
            lambda x: x.repeat_interleave(torch.full((3,), 2, device="sim")),
        ],
    )
    def test_inside_a_step_the_host_must_not_wait(self, device, use):
        x = ones(3)
        use(x)
        assert sum(device.waits.values()) >= 1
        x = ones(3)
        with (
            device.step(),
            pytest.raises(HostWaitError, match=r"makes the host wait for sim:0 inside a step"),
        ):
            use(x)
        with device.step(), host_waits("the test wants it"):
            use(x)
        assert device.waits["the test wants it"] >= 1

    def test_most_work_makes_nobody_wait(self, device):
        x, rows = ones(4, 4, requires_grad=True), torch.arange(2, device="sim")
        with device.step():
            y = torch.where(x > 0, x, 0.0).masked_fill(x < 0, 1.0)[rows]
            y.softmax(-1).sum().backward()
            torch.nn.utils.clip_grad_norm_([x], 1.0)
            torch.zeros(3, device="sim").copy_(torch.ones(3), non_blocking=True)
        assert not device.waits

    def test_bytes_that_cross_are_counted(self, device):
        x = torch.ones(KB).to("sim")
        x.copy_(torch.ones(KB, dtype=torch.float64))
        x[:10].cpu()
        torch.ones(5).copy_(x[:5])
        x.to(torch.bfloat16)
        assert (device.to_device, device.to_host) == (4 * KB + 8 * KB, 40 + 20)


class TestLaunches:
    def launched(self, device, function) -> dict[str, int]:
        device.reset()
        function()
        return dict(device.launches)

    def test_views_and_empty_tensors_launch_nothing(self, device):
        x = ones(4, 4)
        for use in (
            lambda: x.view(2, 8).t().unsqueeze(0).expand(3, 8, 2)[1:, ::2],
            lambda: x.detach().unbind(0),
            lambda: x.contiguous(),
            lambda: torch.empty(3, device="sim"),
            lambda: x.cpu(),
        ):
            assert self.launched(device, use) == {}

    def test_kernels_count_one_each_with_what_they_move(self, device):
        x = ones(4, 4)
        assert self.launched(device, lambda: x + x) == {"aten::add": 1}
        assert device.cost == Cost(read=128, written=64)
        assert self.launched(device, lambda: x.add_(x)) == {"aten::add_": 1}
        assert device.cost == Cost(read=128, written=64)
        assert self.launched(device, lambda: x @ x) == {"aten::mm": 1}
        assert self.launched(device, lambda: x.double()) == {"aten::copy_": 1}
        assert self.launched(device, lambda: torch._foreach_mul_([x, x], 2.0)) == {"aten::_foreach_mul_": 1}
        assert device.cost == Cost(read=128, written=128)
