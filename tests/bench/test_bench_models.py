from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from fastrlhf.bench import models
from fastrlhf.bench.models import SHAPES, STOP, TEMPERATURE


def test_the_same_call_gives_the_same_weights():
    one, other = (models.policy_and_tokenizer("tiny", ending=True)[0].state_dict() for _ in range(2))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("longest", [6, 48, 64])
def test_the_stop_probability_halves_the_mean_length(longest):
    p = models.stop_probability(longest)
    survives = torch.tensor([(1 - p) ** k for k in range(longest)], dtype=torch.float64)
    assert survives.sum().item() == pytest.approx(longest / 2, rel=1e-6)


@torch.no_grad()
def test_a_policy_that_ends_gives_its_stop_token_that_probability_in_every_state():
    policy, _ = models.policy_and_tokenizer("tiny", ending=True)
    tokens = torch.tensor(models.prompts("tiny", 16, None))
    probability = (policy(tokens).logits / TEMPERATURE).softmax(-1)[..., STOP]
    wanted = models.stop_probability(SHAPES["tiny"].response)
    assert probability.min() > 0.7 * wanted and probability.max() < 1.3 * wanted
    plain, _ = models.policy_and_tokenizer("tiny", ending=False)
    assert (plain(tokens).logits / TEMPERATURE).softmax(-1)[..., STOP].max() < 0.1 * wanted


def test_a_scalar_model_on_the_policys_base_holds_no_weight_twice_and_sees_no_adapter():
    policy, _ = models.policy_and_tokenizer("tiny", ending=False)
    tokens = torch.tensor(models.prompts("tiny", 4, None))
    model = models.scalar_model_on(policy, seed=3)
    shared = {parameter.data_ptr() for parameter in policy.parameters()}
    own = [name for name, parameter in model.named_parameters() if parameter.data_ptr() not in shared]
    assert own == ["score.weight"]
    with torch.no_grad():
        hidden = policy.model(input_ids=tokens).last_hidden_state
        adapted = get_peft_model(policy, LoraConfig(r=2, target_modules=["q_proj"]))
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.normal_()
        assert torch.equal(model.model(input_ids=tokens).last_hidden_state, hidden)
        assert not torch.equal(adapted.get_base_model().model(input_ids=tokens).last_hidden_state, hidden)


def test_heads_come_from_the_seed_alone():
    heads = [models.scalar_model("tiny", seed=seed).score.weight for seed in (1, 1, 2)]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[0], heads[2])


def test_prompts_have_the_shapes_length_and_none_of_the_special_tokens():
    rows = models.prompts("17m", 5, None)
    assert [len(row) for row in rows] == [32] * 5
    assert min(min(row) for row in rows) > STOP
