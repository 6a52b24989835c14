"""The trainer makes its models of our operations, and what that costs and saves, in counts."""

from __future__ import annotations

import warnings

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from fastrlhf.kernels import packed, products
from fastrlhf.memory.adamw import AdamW
from fastrlhf.models import linears
from fastrlhf.models.backbone import is_accelerated
from fastrlhf.ppo import loop
from fastrlhf.ppo.stats import UpdateStats
from tests.support.tiny import tiny_llama, tiny_trainer
from tests.support.toy import VOCABULARY, toy_experience, toy_lora, toy_model, toy_rollout, toy_trainer
from tests.support.toy_runs import assert_same_run, run

LAYERS, MAPS = 2, 7


@pytest.mark.parametrize("accelerate", [True, False])
def test_every_hugging_face_model_among_the_roles(tmp_path, accelerate):
    models = {
        "model": toy_model(),
        "ref_model": toy_model(seed=9),
        "value_model": toy_model(seed=4, scorer=True),
    }
    reward = toy_model(seed=5, scorer=True)

    def function(prompts, completions):
        return [0.0] * len(prompts)

    toy_trainer(tmp_path, reward_model=[reward, function], accelerate=accelerate, **models)
    assert [is_accelerated(model) for model in (*models.values(), reward)] == [accelerate] * 4


def test_a_reference_made_by_the_trainer_and_a_new_adapter(tmp_path):
    trainer = toy_trainer(tmp_path)
    assert is_accelerated(trainer.ref_model)
    trainer = toy_trainer(tmp_path, peft_config=toy_lora())
    adapted = [m for m in trainer.policy_model.modules() if hasattr(m, "lora_A")]
    assert len(adapted) == LAYERS * MAPS
    assert all(issubclass(type(module), linears.LoraLinear) for module in adapted)


def test_one_notice_for_a_family_that_is_not_known(tmp_path):
    def opt():
        sizes = {"hidden_size": 16, "ffn_dim": 24, "num_attention_heads": 4, "word_embed_proj_dim": 16}
        config = OPTConfig(vocab_size=VOCABULARY, num_hidden_layers=2, max_position_embeddings=48, **sizes)
        return OPTForCausalLM(config)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = toy_trainer(tmp_path, model=opt(), ref_model=opt())
        trainer.train()
    notices = [each for each in caught if "does not know the family 'opt'" in str(each.message)]
    assert len(notices) == 1 and notices[0].filename.endswith("toy.py"), "where the trainer was made"


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_run_is_that_of_transformers_own_models(tmp_path, lora):
    runs = []
    for accelerate in (True, False):
        torch.manual_seed(0)
        config = toy_lora() if lora else None
        reference = {"ref_model": None} if lora else {}
        runs.append(run(tmp_path, accelerate=accelerate, peft_config=config, **reference))
    assert_same_run(*runs)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_checkpointing_costs_each_layer_a_second_forward(tmp_path, monkeypatch, checkpointing):
    """A third of the products of a training step, where memory is not short."""
    trainer = toy_trainer(tmp_path, gradient_checkpointing=checkpointing)
    experience = toy_experience(trainer, toy_rollout())
    calls, product = [], linears.linear
    monkeypatch.setattr(linears, "linear", lambda *args: calls.append(1) or product(*args))
    loop.update(trainer, experience, torch.arange(8), UpdateStats())
    assert len(calls) == LAYERS * MAPS * (2 if checkpointing else 1)


def test_packed_weights_take_what_they_may(tmp_path, monkeypatch):
    """Chosen always and worth it for the smallest, as on a machine where it pays."""
    monkeypatch.setattr(products, "_WORTH_MEASURING", 1)
    monkeypatch.setattr(products, "_fastest", lambda candidates: "onednn")
    before, table = packed._limit, products.export_table()
    products.clear_table()
    runs = []
    try:
        for limit in ("0", "2KB", "1MB"):
            runs.append(run(tmp_path, packed_weight_bytes=limit))
            kept = packed.packed_bytes()
            assert kept <= packed._limit and (kept > 0) == (limit != "0")
    finally:
        packed.limit_packed(0)
        packed.limit_packed(before)
        products.clear_table()
        products.import_table(table)
    assert_same_run(runs[1], runs[0])
    assert_same_run(runs[2], runs[0])


def test_the_optimizer_is_ours_where_transformers_would_take_pytorch_s(tmp_path):
    assert isinstance(toy_trainer(tmp_path).optimizer, AdamW)
    assert isinstance(toy_trainer(tmp_path, optim="adamw_torch_fused").optimizer, AdamW)
    assert type(toy_trainer(tmp_path, optim="sgd").optimizer) is torch.optim.SGD
    options = {"learning_rate": 3e-4, "adam_beta1": 0.8, "adam_epsilon": 1e-5, "weight_decay": 0.1}
    group = toy_trainer(tmp_path, **options).optimizer.param_groups[0]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        3e-4,
        (0.8, 0.999),
        1e-5,
        0.1,
    )


def test_an_optimizer_that_is_passed_in_gets_clipped_gradients(tmp_path):
    model = tiny_llama()
    before = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    trainer = tiny_trainer(
        tmp_path,
        model=model,
        optimizers=(optimizer, None),
        max_grad_norm=1e-3,
        total_episodes=8,
        num_ppo_epochs=2,
    )
    trainer.train()
    assert trainer.optimizer is optimizer
    moved = torch.cat([parameter.detach().flatten() for parameter in model.parameters()]) - before
    assert 1e-5 < float(moved.norm()) <= 2e-3 * (1 + 1e-3)
