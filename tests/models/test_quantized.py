"""Linear maps with a frozen base in 8 or 4 bits: in a model, under adapters, on the generator and under PPO."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import fastrlhf
from fastrlhf.kernels import dequantize, quantize
from fastrlhf.models.quantized import QuantizedLinear, quantize_linears
from tests.support import tiny

LORA = {"target_modules": "all-linear", "r": 2, "init_lora_weights": False}


def wide_llama(seed: int = 0, **overrides):
    """More than one block of 64 in a row."""
    return tiny.tiny_llama(seed, hidden_size=128, intermediate_size=160, **overrides).eval()


def dequantised(model: nn.Module) -> nn.Module:
    """A copy with ordinary linear maps of the same values."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, QuantizedLinear):
                setattr(parent, name, child.dequantized())
    return model


@pytest.fixture(params=["nf4", "int8"])
def quantised(request):
    model = wide_llama(attention_bias=True)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) / parameter.shape[-1] ** 0.5
    quantize_linears(model, request.param)
    return model


def test_a_layer_computes_with_the_rounded_weight_and_passes_gradients_on():
    for format in ("nf4", "int8"):
        plain = nn.Linear(100, 30)
        layer = QuantizedLinear(quantize(plain.weight, format), plain.bias)
        x = torch.randn(4, 7, 100, requires_grad=True)
        weight = dequantize(layer.quantized)
        torch.testing.assert_close(layer(x), nn.functional.linear(x, weight, plain.bias))
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x)
        (expected,) = torch.autograd.grad(nn.functional.linear(x, weight, plain.bias).square().sum(), x)
        torch.testing.assert_close(gradient, expected)
        assert format in repr(layer)


def test_what_is_quantised_is_the_layers_and_nothing_of_them_trains(quantised):
    maps = [module for module in quantised.modules() if isinstance(module, QuantizedLinear)]
    assert len(maps) == 14
    assert type(quantised.lm_head) is nn.Linear
    assert not any(parameter.requires_grad for module in maps for parameter in module.parameters())


def test_a_cast_of_the_model_leaves_the_scales_as_they_are(quantised):
    before = {name: p.clone() for name, p in quantised.named_parameters()}
    quantised.to(torch.bfloat16)
    assert quantised.lm_head.weight.dtype == torch.bfloat16
    for module in (m for m in quantised.modules() if isinstance(m, QuantizedLinear)):
        assert module.bias is None or module.bias.dtype == torch.bfloat16
    for name, parameter in quantised.named_parameters():
        if "scale" in name or name.endswith("offset"):
            assert torch.equal(parameter, before[name])


def test_a_state_dict_comes_back(quantised):
    other = wide_llama(3, attention_bias=True)
    quantize_linears(other, quantised.model.layers[0].mlp.up_proj.quantized.format)
    other.load_state_dict(quantised.state_dict())
    tokens = torch.arange(9)[None]
    assert torch.equal(other(tokens).logits, quantised(tokens).logits)


def test_a_model_without_linear_maps_is_refused():
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear in its layers"):
        quantize_linears(tiny.tiny_gpt2(), "nf4")
    with pytest.raises(ValueError, match="format is 'nf5'"):
        quantize_linears(wide_llama(), "nf5")


@pytest.mark.parametrize("accelerated", [False, True])
def test_adapters_on_it_are_those_on_the_rounded_weights(quantised, accelerated):
    plain, tokens = dequantised(quantised), torch.arange(9)[None]
    logits, gradients = [], []
    for model in (quantised, plain):
        if accelerated:
            fastrlhf.accelerate(model)
        torch.manual_seed(0)
        adapted = get_peft_model(model, LoraConfig(**LORA))
        if accelerated:
            fastrlhf.accelerate(adapted)
        logits.append(adapted(tokens).logits)
        logits[-1].log_softmax(-1)[..., 0].sum().backward()
        gradients.append([p.grad for name, p in adapted.named_parameters() if "lora" in name])
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-4)
    assert len(gradients[0]) == 28
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


def test_an_adapter_is_saved_and_put_on_again(quantised, tmp_path):
    base = copy.deepcopy(quantised)
    adapted = get_peft_model(quantised, LoraConfig(**LORA))
    adapted.save_pretrained(tmp_path)
    tokens = torch.arange(9)[None]
    again = PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(again(tokens).logits, adapted(tokens).logits)


@pytest.mark.parametrize("adapters", [False, True])
def test_the_generator_runs_it_on_its_own_kernels(quantised, adapters, recwarn):
    plain = dequantised(quantised)
    prompts, completions = [[1, 2, 3], [4, 5, 6, 7]], []
    for model in (quantised, plain):
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(**LORA)) if adapters else model
        completions.append(fastrlhf.generate(model, prompts, max_new_tokens=12, seed=3, stop_token_ids=[]))
    assert not [w for w in recwarn if "its own forward" in str(w.message)]
    for one, other in zip(*completions, strict=True):
        assert one.tokens == other.tokens
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
    in_8_bits = fastrlhf.generate(quantised, prompts, max_new_tokens=4, weights="int8")
    assert len(in_8_bits) == 2


MEMORY = {"all on the device": {}, "little": {"device_memory": "200kB", "host_memory": "4MB"}}


@pytest.mark.parametrize("memory", MEMORY)
@pytest.mark.parametrize("format", ["nf4", "int8"])
def test_ppo_trains_adapters_on_it_as_on_the_rounded_weights(format, memory, tmp_path):
    def run(folder, round_only):
        model = wide_llama()
        quantize_linears(model, format)
        torch.manual_seed(0)
        trainer = tiny.tiny_trainer(
            tmp_path / folder,
            model=dequantised(model) if round_only else model,
            peft_config=LoraConfig(target_modules="all-linear", exclude_modules=["lm_head"], r=2),
            logging_steps=1,
            total_episodes=16,
            **({} if round_only else MEMORY[memory]),
        )
        before = {name: p.clone() for name, p in model.state_dict().items() if "lora" not in name}
        trainer.train()
        rows = [row for row in trainer.state.log_history if "objective/scores" in row]
        adapters = {name: p for name, p in trainer.model.state_dict().items() if "lora" in name}
        after = trainer.policy_model.base_model.model.state_dict()
        for name, value in before.items() if not round_only else ():
            layer, _, part = name.rpartition(".")
            kept = after.get(f"{layer}.base_layer.{part}", after.get(name))
            assert torch.equal(kept, value), name
        return rows, adapters

    (rows, adapters), (expected_rows, expected) = run("bits", False), run("rounded", True)
    assert len(rows) == 2
    for row, other in zip(rows, expected_rows, strict=True):
        for name in ("objective/scores", "objective/entropy", "loss/policy_avg", "loss/value_avg"):
            assert row[name] == pytest.approx(other[name], rel=1e-3, abs=1e-4), name
    assert sum(float(p.abs().sum()) for name, p in adapters.items() if "lora_B" in name) > 0, "trained"
    for name, value in expected.items():
        torch.testing.assert_close(adapters[name], value, rtol=1e-2, atol=1e-3)
