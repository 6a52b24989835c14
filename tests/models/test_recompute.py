"""Norms and gated products that the backward computes again: the same bits, and nothing kept."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from fastrlhf.models import parts
from fastrlhf.models.accelerate import accelerate
from fastrlhf.models.families import llama
from fastrlhf.models.recompute import computed_again
from tests.support.toy import toy_lora, toy_model

TOKENS = torch.arange(12).view(2, 6) % 20


def gradients(model, tokens=TOKENS):
    model.zero_grad()
    model(input_ids=tokens).logits.square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def kept(monkeypatch):
    """Switches the computing again off."""

    def off():
        for module in (llama, parts):
            monkeypatch.setattr(module, "computed_again", lambda *_: nullcontext())

    return off


def adapted(seed=0):
    from peft import get_peft_model

    torch.manual_seed(seed)
    return accelerate(get_peft_model(toy_model(), toy_lora()))


@pytest.mark.parametrize("make", [lambda: accelerate(toy_model()), adapted], ids=["full", "lora"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_have_the_same_bits(kept, make, checkpointing):
    model = make().train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    found = gradients(model)
    kept()
    expected = gradients(model)
    assert found.keys() == expected.keys() and found
    assert all(torch.equal(gradient, expected[name]) for name, gradient in found.items())


def test_it_is_computed_once_for_all_that_saved_it_and_again_for_another_backward():
    calls = []
    x, weights = (
        torch.randn(4, 3, requires_grad=True),
        [torch.randn(3, 2, requires_grad=True) for _ in range(3)],
    )
    y = x.exp()

    def again():
        calls.append(1)
        return x.exp()

    with computed_again(y, again):
        total = sum((y.view(2, 2, 3) @ weight).square().sum() for weight in weights)
    for passes in (1, 2):
        found = torch.autograd.grad(total, [x, *weights], retain_graph=passes == 1)
        assert len(calls) == passes
    plain = sum((x.exp() @ weight).square().sum() for weight in weights)
    torch.testing.assert_close(found, torch.autograd.grad(plain, [x, *weights]))


def test_it_is_not_kept():
    freed = []
    x = torch.randn(4, 3, requires_grad=True)
    y = x * 1

    class Marker:
        def __del__(self):
            freed.append(1)

    y.marker = Marker()
    with computed_again(y, lambda: x * 1):
        z = y @ torch.randn(3, 2, requires_grad=True)
    del y
    assert freed
    z.sum().backward()


@pytest.mark.parametrize("case", ["no gradient", "frozen input", "others' hooks"])
def test_where_it_stands_back(case):
    x = torch.randn(3, requires_grad=case != "frozen input")
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor)
    with torch.set_grad_enabled(case != "no gradient"), hooks if case == "others' hooks" else nullcontext():
        assert isinstance(computed_again(x, x.clone), nullcontext)


def test_a_compiled_model():
    model = accelerate(toy_model()).train()
    expected = gradients(model)
    compiled = torch.compile(model, backend="aot_eager")
    model.zero_grad()
    compiled(input_ids=TOKENS).logits.square().sum().backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], rtol=1e-4, atol=1e-4)
