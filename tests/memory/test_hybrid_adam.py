"""The optimizer: PyTorch's interface and numbers, wherever a chunk lies; and weights that are loaded and saved."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file
from torch import nn
from transformers import LlamaForCausalLM

import fastrlhf
from fastrlhf.device import simulated
from fastrlhf.memory.placement import StaticPlacement
from tests.support.offloaded import adamw, assert_same, net, train, weights
from tests.support.tiny import llama_config

SMALL = {"device_memory": 30_000, "chunk_size": 2_000}
PLACES = ["disk", "host", "device", "sim host", "sim disk"]


@pytest.fixture(params=PLACES)
def place(request, tmp_path):
    """Options of `offload`, and the device that they are for."""
    options = dict(SMALL)
    if request.param == "device":
        options = {"chunk_size": 2_000}
    if request.param.endswith("disk"):
        options["disk"] = tmp_path
    if request.param.endswith("host"):
        options["host_memory"] = "1MB"
    if request.param == "sim disk":
        options["host_memory"] = 50_000
    if not request.param.startswith("sim"):
        yield "cpu", options
        return
    with simulated.registered():
        yield "sim", options


def offloaded(place, model=None, dtype=torch.float32, **options):
    device, given = place
    model = net(dtype=dtype) if model is None else model
    return model, fastrlhf.offload(model, adamw(model, **options), device=device, **given)


def test_the_numbers_are_those_of_pytorch(place):
    plain = net()
    theirs = adamw(plain)
    theirs.clip_grad_norm_ = lambda norm: nn.utils.clip_grad_norm_(plain.parameters(), norm)
    expected = train(plain, theirs)
    model, ours = offloaded(place)
    actual = train(model, ours, place[0])
    assert actual == pytest.approx(expected, rel=1e-5)
    for name, value in weights(model).items():
        torch.testing.assert_close(value, plain.state_dict()[name], rtol=1e-4, atol=1e-5)


def test_the_norm_is_that_of_pytorch_to_the_bit(place):
    def loss(model, device="cpu"):
        return model(torch.arange(6, device=device)[None]).square().mean()

    plain = net()
    model, optimizer = offloaded(place)
    for _ in range(2):  # the second backward adds to the first
        loss(plain).backward()
        loss(model, place[0]).backward()
        groups = adamw(plain).param_groups
        parameters = [each for group in groups for each in group["params"]]
        assert optimizer.clip_grad_norm_(1.0).item() == nn.utils.get_total_norm(
            [each.grad for each in parameters if each.grad is not None]
        )


def test_an_update_that_is_not_finite_changes_nothing(place):
    model, optimizer = offloaded(place)
    train(model, optimizer, place[0], steps=1)
    before, state = weights(model), optimizer.state_dict()["state"]
    moments = {i: each["exp_avg"].cpu().clone() for i, each in state.items()}
    (model(torch.arange(6, device=place[0])[None]).sum() * math.inf).backward()
    assert not math.isfinite(optimizer.clip_grad_norm_(1.0))
    optimizer.step()
    optimizer.zero_grad()
    assert_same(weights(model), before)
    after = optimizer.state_dict()["state"]
    assert all(torch.equal(after[i]["exp_avg"].cpu(), moment) for i, moment in moments.items())
    assert all(after[i]["step"] == 1 for i in moments)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_a_run_that_was_saved_goes_on_to_the_bit(place, dtype, tmp_path):
    model, optimizer = offloaded(place, dtype=dtype)
    train(model, optimizer, place[0], steps=2)
    torch.save([weights(model), optimizer.state_dict()], tmp_path / "saved")
    train(model, optimizer, place[0], steps=2)

    again, optimizer_again = offloaded(place, net(seed=5, dtype=dtype))
    state, moments = torch.load(tmp_path / "saved")
    again.load_state_dict(state)
    optimizer_again.load_state_dict(moments)
    train(again, optimizer_again, place[0], steps=2)
    assert_same(weights(again), weights(model))
    del optimizer, optimizer_again


def test_loaded_bfloat16_weights_replace_their_masters(place):
    model, optimizer = offloaded(place, dtype=torch.bfloat16)
    train(model, optimizer, place[0], steps=1)
    other = net(seed=3, dtype=torch.bfloat16)
    model.load_state_dict(other.state_dict())
    assert_same(weights(model), weights(other))
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, place[0], steps=1)
    assert_same(weights(model), weights(other))


def test_state_of_pytorchs_optimizer_is_taken_over_and_given_back():
    plain = net()
    theirs = adamw(plain)
    theirs.clip_grad_norm_ = lambda norm: nn.utils.clip_grad_norm_(plain.parameters(), norm)
    train(plain, theirs, steps=2)
    model = net()
    model.load_state_dict(plain.state_dict())
    started = adamw(model)
    started.load_state_dict(theirs.state_dict())
    ours = fastrlhf.offload(model, started, host_memory="1MB", **SMALL)
    for name, value in ours.state_dict()["state"][0].items():
        assert torch.equal(value, theirs.state_dict()["state"][0][name])
    losses = train(model, ours, steps=1)
    assert losses == pytest.approx(train(plain, theirs, steps=1), rel=1e-5)
    theirs.load_state_dict(ours.state_dict())
    assert theirs.state_dict()["state"][0]["step"] == 3


def test_a_scheduler_made_before_or_after_sets_the_learning_rate():
    model = net()
    before = adamw(model)
    first = torch.optim.lr_scheduler.LinearLR(before, 0.5)
    optimizer = fastrlhf.offload(model, before)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.25)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-2 * 0.25)
    optimizer.step()
    first.step()  # the optimizer that it was made for has the same groups
    assert optimizer.param_groups[0]["lr"] != pytest.approx(1e-2 * 0.25)


def test_gradients_are_forgotten_by_either_zero_grad():
    results = []
    for of_model in (False, True):
        model, optimizer = offloaded(("cpu", {**SMALL, "host_memory": "1MB"}))
        if of_model:
            optimizer.zero_grad = model.zero_grad
        train(model, optimizer, steps=3)
        results.append(weights(model))
    assert_same(*results)
    with pytest.raises(ValueError, match="set_to_none"):
        offloaded(("cpu", {}))[1].zero_grad(set_to_none=False)


def test_parameters_are_not_added_later():
    optimizer = offloaded(("cpu", {}))[1]
    with pytest.raises(ValueError, match=r"before fastrlhf\.offload"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(1))]})


def test_a_closure_gives_the_loss():
    model, optimizer = offloaded(("cpu", SMALL | {"host_memory": "1MB"}))

    def closure():
        loss = model(torch.arange(6)[None]).square().mean()
        loss.backward()
        return loss

    assert optimizer.step(closure) > 0


def test_a_hugging_face_model_with_an_adapter(place, tmp_path):
    """Base frozen and streamed, adapter trained; saved and loaded by PEFT, checkpointed by transformers."""

    def adapted():
        torch.manual_seed(0)
        base = LlamaForCausalLM(llama_config(tie_word_embeddings=True))
        base.gradient_checkpointing_enable()
        base.train()
        return get_peft_model(base, LoraConfig(target_modules="all-linear", r=2, lora_alpha=4))

    def run(model, optimizer, device):
        generator = torch.Generator().manual_seed(1)
        for _ in range(3):
            tokens = torch.randint(0, 29, (2, 8), generator=generator).to(device)
            model(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

    def made(device, options):
        model = adapted()
        parameters = [each for each in model.parameters() if each.requires_grad]
        optimizer = fastrlhf.offload(model, torch.optim.AdamW(parameters, lr=1e-2), device=device, **options)
        run(model, optimizer, device)
        return model, optimizer

    device, options = place
    plain, kept = made(device, {"chunk_size": 2_000})
    model, optimizer = made(device, options)
    assert_same(weights(model), weights(plain))
    model.save_pretrained(tmp_path / "adapter")
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert_same(saved, {name: value.cpu() for name, value in get_peft_model_state_dict(plain).items()})
    del optimizer, kept


def test_a_whole_hugging_face_model_is_saved_and_loaded(tmp_path):
    model = LlamaForCausalLM(llama_config(tie_word_embeddings=True))
    expected = weights(model)
    optimizer = torch.optim.AdamW(model.parameters())
    fastrlhf.offload(model, optimizer, device_memory=25_000, host_memory="1MB", placement=StaticPlacement())
    model.save_pretrained(tmp_path)
    assert_same(weights(LlamaForCausalLM.from_pretrained(tmp_path)), expected)
