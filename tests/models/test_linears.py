"""The linear maps of accelerated blocks, with and without PEFT's adapters, compute what PyTorch and PEFT do."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn

import fastrlhf
from fastrlhf.models import linears
from tests.support.precision import assert_as_good_as
from tests.support.toy import toy_model

LAYERS = ["q_proj", "down_proj"]


def adapted(names=("default",), dtype=torch.float32, bias=False, **options):
    """A toy Llama with adapters that do something; the first is active."""
    model = toy_model(attention_bias=bias).to(dtype)
    config = LoraConfig(**{"r": 2, "target_modules": LAYERS, "init_lora_weights": False, **options})
    torch.manual_seed(0)
    model = get_peft_model(model, config, adapter_name=names[0])
    for name in names[1:]:
        model.add_adapter(name, LoraConfig(r=3, lora_alpha=5, target_modules=LAYERS, init_lora_weights=False))
    return model.eval()


def activate(model, names):
    model.base_model.set_adapter(list(names))
    return model


def used(monkeypatch):
    """The calls of the fused operation, as they come."""
    calls, product = [], linears.lora_linear
    monkeypatch.setattr(linears, "lora_linear", lambda *args: calls.append(args) or product(*args))
    return calls


IDS = torch.tensor([[3, 1, 4, 1, 5], [9, 2, 6, 5, 3]])


def results(model):
    """Hidden states' logits, and the gradients of what is trained, by name."""
    logits = model(IDS).logits
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(
        logits.float().log_softmax(-1).square().mean(), list(named.values()), allow_unused=True
    )
    found = {name: grad for name, grad in zip(named, gradients, strict=True) if grad is not None}
    return {"logits": logits.detach(), **found}


@pytest.mark.parametrize("names", [("default",), ("default", "other")], ids=["one", "two"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_adapters(monkeypatch, names, dtype, bias):
    plain = activate(adapted(names, dtype, bias), names)
    ours = fastrlhf.accelerate(copy.deepcopy(plain))
    exact = results(copy.deepcopy(plain).double())
    same, calls = results(plain), used(monkeypatch)
    found = results(ours)
    assert len(calls) == 4, "two layers of two maps each"
    assert found.keys() == same.keys() == exact.keys()
    # in bfloat16 gradients have gone through a net of roundings, whose luck says more than an operation's error does
    for name, value in found.items() if dtype == torch.float32 else [("logits", found["logits"])]:
        assert_as_good_as(value, same[name], exact[name], name=name, ulps=32)


@pytest.mark.parametrize("names", [(), ("other",)], ids=["no adapter", "another one"])
def test_the_active_adapter_counts(monkeypatch, names):
    plain = adapted(("default", "other"))
    ours = fastrlhf.accelerate(copy.deepcopy(plain))
    calls = used(monkeypatch)
    for model in (plain, ours):
        if names:
            activate(model, names)
        else:
            model.base_model.disable_adapter_layers()
    torch.testing.assert_close(ours(IDS).logits, plain(IDS).logits, rtol=1e-4, atol=1e-5)
    assert len(calls) == (4 if names else 0)


def test_merged_adapters():
    plain = adapted()
    ours = fastrlhf.accelerate(copy.deepcopy(plain))
    before = ours(IDS).logits
    ours.merge_adapter()
    torch.testing.assert_close(ours(IDS).logits, before, rtol=1e-4, atol=1e-5)
    ours.unmerge_adapter()
    torch.testing.assert_close(ours(IDS).logits, before, rtol=1e-4, atol=1e-5)
    alone = ours.merge_and_unload()
    torch.testing.assert_close(alone(IDS).logits, before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "options",
    [{"lora_dropout": 0.5}, {"use_dora": True}, {"lora_bias": True}],
    ids=["dropout", "dora", "lora_bias"],
)
def test_what_the_operation_does_not_do_stays_peft_s(monkeypatch, options):
    plain = adapted(bias=True, target_modules=["q_proj"], **options).train()
    ours, calls = fastrlhf.accelerate(copy.deepcopy(plain)), used(monkeypatch)
    found = []
    for model in (plain, ours):
        torch.manual_seed(1)
        found.append(model(IDS).logits)
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)
    assert not calls
    if "lora_dropout" in options:
        ours.eval()(IDS)
        assert len(calls) == 2


def test_an_adapter_for_each_row_of_a_batch(monkeypatch):
    plain = adapted(("default", "other"))
    ours = fastrlhf.accelerate(copy.deepcopy(plain))
    rows = {"adapter_names": ["other", "__base__"]}
    torch.testing.assert_close(ours(IDS, **rows).logits, plain(IDS, **rows).logits, rtol=1e-4, atol=1e-5)


def test_autocast_decides_the_dtype_of_a_product():
    layer, x = nn.Linear(8, 6), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        product = linears.layer_product(x, layer.weight, layer.bias)
        assert product.dtype == layer(x).dtype == torch.bfloat16
        torch.testing.assert_close(product, layer(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("adapter", [False, True], ids=["bare", "lora"])
def test_names_weights_and_copies_stay(adapter):
    plain = adapted() if adapter else toy_model()
    before = {name: (p.data_ptr(), p.requires_grad) for name, p in plain.named_parameters()}
    keys, shown = list(plain.state_dict()), str(plain)
    ours = fastrlhf.accelerate(fastrlhf.accelerate(plain))
    assert {name: (p.data_ptr(), p.requires_grad) for name, p in ours.named_parameters()} == before
    assert list(ours.state_dict()) == keys and str(ours) == shown
    kinds = [kind for m in ours.modules() if (kind := getattr(type(m), "accelerated_from", None))]
    assert kinds.count(nn.Linear) == 14, (
        "seven maps in each of two layers, and neither the head nor an adapter's"
    )
    assert all(not hasattr(kind, "accelerated_from") for kind in kinds)
    clone = copy.deepcopy(ours)
    with torch.no_grad():
        for parameter in clone.parameters():
            parameter.zero_()
    assert ours(IDS).logits.any()


@pytest.mark.parametrize("adapter", [False, True], ids=["bare", "lora"])
def test_checkpointing_and_compilation_change_nothing(adapter):
    ours = fastrlhf.accelerate(adapted() if adapter else toy_model()).train()
    expected = results(ours)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(ours, backend="aot_eager")
        torch.testing.assert_close(compiled(IDS, use_cache=False).logits.detach(), expected["logits"])
        ours.gradient_checkpointing_enable({"use_reentrant": False})
    for name, value in results(ours).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-7, msg=name)


def test_a_quantised_layer_is_left_alone():
    class Quantised(nn.Linear):
        pass

    model = toy_model()
    model.model.layers[0].mlp.up_proj = Quantised(16, 24)
    fastrlhf.accelerate(model)
    assert type(model.model.layers[0].mlp.up_proj) is Quantised
