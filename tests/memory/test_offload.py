"""Training in little memory: the bits of training in plenty, whatever the tiers, policy and prefetch."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fastrlhf
from fastrlhf.device import simulated
from fastrlhf.memory.meter import CapacityError
from fastrlhf.memory.placement import StaticPlacement
from tests.support.offloaded import adamw, assert_same, net, train, trained, weights

SMALL = 30_000  # of about 80 kB of parameters, gradients and optimizer state
CHUNK = 2_000
STATIC = StaticPlacement(parameters=0.3, optimizer=0.1)
TIERS = {
    "disk": {"device_memory": SMALL, "disk": True},
    "host": {"device_memory": SMALL, "host_memory": "1MB"},
    "host and disk": {"device_memory": SMALL, "host_memory": 50_000, "disk": True},
    "static": {"device_memory": 40_000, "host_memory": "1MB", "placement": STATIC},
    "static, host and disk": {
        "device_memory": 40_000,
        "host_memory": 50_000,
        "disk": True,
        "placement": STATIC,
    },
    "nothing stays": {"device_memory": SMALL, "host_memory": "1MB", "placement": StaticPlacement()},
    "all on the device": {},
}


@pytest.fixture(scope="module")
def plenty():
    """By dtype, what training without any limit gives."""
    return {dtype: trained(dtype=dtype, chunk_size="1GB")[:2] for dtype in (torch.float32, torch.bfloat16)}


def options_of(tiers, folder, **more):
    options = {"chunk_size": CHUNK, **TIERS[tiers], **more}
    return {**options, "disk": folder} if options.get("disk") else options


@pytest.mark.parametrize("prefetch", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tiers", TIERS)
def test_the_memory_given_does_not_change_a_bit(tiers, dtype, prefetch, tmp_path, plenty):
    actual, losses, optimizer = trained(dtype=dtype, **options_of(tiers, tmp_path, prefetch=prefetch))
    assert_same(actual, plenty[dtype][0])
    assert losses == plenty[dtype][1]
    device = optimizer.manager.device_meter
    assert device.peak <= device.capacity


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("tiers", TIERS)
def test_nor_does_a_device_whose_copies_land_late(tiers, dtype, prefetch, tmp_path, plenty):
    with simulated.registered():
        actual, losses, optimizer = trained(
            "sim", dtype=dtype, **options_of(tiers, tmp_path, prefetch=prefetch)
        )
        assert_same(actual, plenty[dtype][0])
        assert losses == plenty[dtype][1]
        host = optimizer.manager.host_meter
        assert host.peak <= host.capacity
        del optimizer


def test_what_is_trained_is_what_the_kernel_computes_of_each_parameter(plenty):
    """Against a loop of our AdamW over plain tensors, clipped by PyTorch."""
    model = net()
    groups = adamw(model).param_groups
    state = {p: (torch.zeros_like(p), torch.zeros_like(p)) for group in groups for p in group["params"]}

    class Plain:
        steps = 0

        def clip_grad_norm_(self, max_norm):
            self.norm = nn.utils.clip_grad_norm_(list(state), float("inf"))
            self.max_norm = max_norm

        def step(self):
            self.steps += 1
            for group in groups:
                for p in (p for p in group["params"] if p.grad is not None):
                    tensors = [each.detach().flatten() for each in (p, p.grad, *state[p])]
                    names = ("lr", "betas", "eps", "weight_decay")
                    options = {name: group[name] for name in names}
                    clip = {"grad_norm": self.norm, "max_norm": self.max_norm}
                    fastrlhf.kernels.adamw(*tensors, step=self.steps, **options, **clip)

        def zero_grad(self):
            model.zero_grad()

    losses = train(model, Plain())
    assert losses == plenty[torch.float32][1]
    assert_same(weights(model), plenty[torch.float32][0])


def test_the_simulated_device_holds_no_more_than_was_given_beside_the_activations(tmp_path):
    def peak(**options):
        with simulated.registered() as device:
            optimizer = trained("sim", chunk_size=CHUNK, **options)[2]
            del optimizer
            return device.peak

    assert peak(device_memory=SMALL) < peak() - 35_000


def test_a_model_without_values_is_made_in_its_tier(tmp_path):
    with torch.device("meta"):
        model = net()
    manager = fastrlhf.offload(model, device_memory=SMALL // 4, disk=tmp_path, chunk_size=CHUNK)
    for number, layer in enumerate(model.layers):
        with manager.use(layer, writes=True), torch.no_grad():
            layer.down.weight.fill_(number)
    found = weights(model)
    assert not found["scale"].any()
    for number in range(4):
        assert (found[f"layers.{number}.down.weight"] == number).all()


def test_frozen_models_share_the_memory_and_stream_through():
    policy, reference = net(), net(1)
    tokens = torch.arange(6)[None]
    expected = reference(tokens)
    optimizer = fastrlhf.offload(
        [policy, reference], adamw(policy), device_memory=SMALL, host_memory="1MB", chunk_size=CHUNK
    )
    for _ in range(3):
        with torch.no_grad():
            assert torch.equal(reference(tokens), expected)
        train(policy, optimizer, steps=1)
    meter = optimizer.manager.device_meter
    assert meter.peak <= SMALL < meter.moved_in


def test_a_manager_without_an_optimizer():
    model = net()
    tokens = torch.arange(6)[None]
    expected = model(tokens)
    manager = fastrlhf.offload(model, device_memory=8_000, host_memory="1MB", chunk_size=CHUNK)
    for _ in range(3):
        assert torch.equal(model(tokens), expected)
    assert "device" in manager.report()


def test_weights_taken_without_running_their_module_come_under_use():
    def logits(model, use):
        hidden = model.embed(torch.arange(6)[None])
        with use(model.layers[2].up):
            return nn.functional.linear(hidden, model.layers[2].up.weight).square().sum()

    plain = net()
    logits(plain, lambda module: torch.enable_grad()).backward()
    model = net()
    optimizer = fastrlhf.offload(
        model, adamw(model), device_memory=SMALL, host_memory="1MB", chunk_size=CHUNK
    )
    loss = logits(model, optimizer.manager.use)
    model(torch.arange(6)[None])  # takes the place of what was used
    loss.backward()
    weight = model.layers[2].up.weight
    with optimizer.manager.gradient(weight) as gradient:
        assert torch.equal(gradient, plain.layers[2].up.weight.grad)


def test_checkpointed_activations_bring_the_layer_again():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self, model, reentrant):
            super().__init__()
            self.model, self.reentrant = model, reentrant

        def forward(self, tokens):
            hidden = self.model.embed(tokens) * 1.0
            for layer in self.model.layers:
                hidden = checkpoint(layer, hidden, use_reentrant=self.reentrant)
            return self.model.head(self.model.norm(hidden))

    for reentrant in (False, True):
        results = []
        for options in ({}, {"device_memory": SMALL, "host_memory": "1MB"}):
            model = Checkpointed(net(), reentrant)
            optimizer = fastrlhf.offload(model, adamw(model), chunk_size=CHUNK, **options)
            train(model, optimizer)
            results.append(weights(model))
        assert_same(*results)


def test_a_copy_is_a_model_of_its_own_in_the_devices_memory():
    model, tokens = net(), torch.arange(6)[None]
    expected = model(tokens)
    optimizer = fastrlhf.offload(
        model, adamw(model), device_memory=SMALL, host_memory="1MB", chunk_size=CHUNK
    )
    copied = copy.deepcopy(model)
    assert copied.head.weight is copied.embed.weight
    train(model, optimizer)
    assert torch.equal(copied(tokens), expected)
    assert_same(weights(copied), weights(net()))
    copied.load_state_dict(net(3).state_dict())
    assert_same(weights(copied), weights(net(3)))
    assert not torch.equal(model(tokens), expected)


def test_a_part_of_the_model_gives_and_takes_its_values_too(tmp_path):
    for options in ({"host_memory": "1MB"}, {"disk": tmp_path}):
        model = net()
        fastrlhf.offload(model, device_memory=SMALL // 3, chunk_size=CHUNK, **options)
        part = model.layers[2].up
        assert_same(weights(part), weights(net().layers[2].up))
        part.load_state_dict(net(3).layers[2].up.state_dict())
        assert_same(weights(model.layers[2].up), weights(net(3).layers[2].up))


def test_what_the_host_holds_away_from_the_device_is_seen_as_nan():
    model = net()
    fastrlhf.offload(model, device_memory=SMALL, host_memory="1MB", placement=StaticPlacement())
    weight = model.layers[0].up.weight
    assert weight.shape == (32, 16) and weight.isnan().all()
    with pytest.raises(RuntimeError), torch.no_grad():
        weight.add_(1)


def test_a_working_set_that_does_not_fit_is_said_before_training():
    model = net()
    with pytest.raises(CapacityError, match=r"device_memory is 3 kB, but .* needs .* on the device at once"):
        fastrlhf.offload(model, adamw(model), device_memory=3_000, host_memory="1MB", chunk_size=CHUNK)
    assert not model.head.weight.isnan().any(), "untouched"


def test_the_number_that_it_says_is_enough():
    import re

    with pytest.raises(CapacityError) as error:
        model = net()
        fastrlhf.offload(model, adamw(model), device_memory=3_000, host_memory="1MB", chunk_size=CHUNK)
    needed = int(re.search(r"\((\d+) bytes\)", str(error.value))[1])
    trained(device_memory=needed, host_memory="1MB", chunk_size=CHUNK)
    with pytest.raises(CapacityError):
        trained(device_memory=needed - 1, host_memory="1MB", chunk_size=CHUNK)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device_memory": "6 gigs"}, ValueError, "device_memory is .* expected a number of bytes"),
        ({"device_memory": -1}, ValueError, "device_memory is -1"),
        ({"device_memory": 0}, CapacityError, "on the device at once"),
        ({"placement": "best"}, ValueError, "placement"),
        ({"prefetch": -1}, ValueError, "prefetch"),
        ({"device_memory": SMALL, "host_memory": 1000}, CapacityError, "more are needed"),
        ({"device_memory": SMALL}, CapacityError, "have no place"),
    ],
)
def test_what_cannot_be_meant_is_refused(options, error, message):
    model = net()
    with pytest.raises(error, match=message):
        fastrlhf.offload(model, adamw(model), chunk_size=CHUNK, **options)


def test_optimizers_that_are_not_adamw_are_refused():
    model = net()
    with pytest.raises(TypeError, match="SGD"):
        fastrlhf.offload(model, torch.optim.SGD(model.parameters(), lr=1.0))
    with pytest.raises(ValueError, match="amsgrad"):
        fastrlhf.offload(model, torch.optim.AdamW(model.parameters(), amsgrad=True))
    with pytest.raises(ValueError, match="weight decay"):
        fastrlhf.offload(model, torch.optim.Adam(model.parameters(), weight_decay=0.1))
    with pytest.raises(ValueError, match="not in model"):
        fastrlhf.offload(model, adamw(net()))
    with pytest.raises(ValueError, match="no parameters"):
        fastrlhf.offload(nn.ReLU())
    with pytest.raises(TypeError, match="float16"):
        half = net(dtype=torch.float16)
        fastrlhf.offload(half, adamw(half))
    model.embed.weight.grad = torch.zeros_like(model.embed.weight)
    with pytest.raises(ValueError, match="zero_grad"):
        fastrlhf.offload(model, adamw(model))


@pytest.mark.parametrize("tiers", ["host", "host and disk", "static", "all on the device"])
def test_the_host_waits_for_the_device_where_it_has_to_alone(tiers, tmp_path):
    with simulated.registered() as device:
        model, tokens = net(), torch.arange(6)[None].to("sim")
        optimizer = fastrlhf.offload(model, adamw(model), device="sim", **options_of(tiers, tmp_path))
        for _ in range(3):
            device.reset()
            with device.step():
                model(tokens).square().mean().backward()
                optimizer.clip_grad_norm_(1.0)
                optimizer.step()
                optimizer.zero_grad()
        needed = {"a chunk that the host needs"} if tiers != "all on the device" else set()
        assert set(device.waits) == {"whether the update is finite"} | needed
        if tiers == "all on the device":
            assert not device.to_device and device.to_host == 4  # the norm
        del optimizer
