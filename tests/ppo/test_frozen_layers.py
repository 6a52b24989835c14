"""Frozen layers run once a rollout, for all roles and passes, and a step is the plain one."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from fastrlhf.models.frozen import layers_of
from fastrlhf.ppo import loop
from fastrlhf.ppo.stats import UpdateStats
from tests.support.runs import metrics, same, snapshot
from tests.support.tiny import tiny_llama, tiny_trainer
from tests.support.toy import toy_lora, toy_model, toy_trainer
from tests.support.toy_runs import assert_same_run, cut, run

SHAPES = ("llama", "gpt2")
PLAIN = {"accelerate": False, "packing": False, "reuse_rollout_logprobs": False}


def with_frozen_bottom(model):
    """All but the top layer frozen by hand, as a user of plain transformers would."""
    top = (model.transformer.h if hasattr(model, "transformer") else model.model.layers)[-1]
    model.requires_grad_(False)
    top.requires_grad_(True)
    return model


def plain_run(folder, shape, **options):
    """Whole models, padding and all, with the same things trained."""
    model = toy_model(shape)
    return run(folder, shape=shape, **PLAIN, **{"model": with_frozen_bottom(model), **options})


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("micro_batch", [2, 8])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_a_run_with_everything_on_is_the_plain_one(tmp_path, shape, micro_batch, checkpointing):
    options = {"num_mini_batches": 2, "local_rollout_forward_batch_size": 3}
    expected = plain_run(tmp_path, shape, ref_model=toy_model(shape), **options)
    options |= {"gradient_checkpointing": checkpointing, "ref_model": None, **cut(micro_batch)}
    assert_same_run(run(tmp_path, shape=shape, trainable_layers=1, **options), expected)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_critic_of_its_own_is_frozen_below_too(tmp_path, shape):
    critic = with_frozen_bottom(toy_model(shape, 4, scorer=True))
    critic.score.requires_grad_(True)
    expected = plain_run(tmp_path, shape, value_model=critic)
    found = run(tmp_path, shape=shape, trainable_layers=1, value_model=toy_model(shape, 4, scorer=True))
    assert_same_run(found, expected)


@pytest.mark.parametrize("targets", ["all-linear", ["q_proj", "down_proj"]], ids=["all", "two"])
def test_lora_on_the_top_layers(tmp_path, targets):
    def lora(**options):
        return toy_lora(
            target_modules=["q_proj", "down_proj"] if "layers_to_transform" in options else targets, **options
        )

    torch.manual_seed(0)
    trainer = toy_trainer(tmp_path, peft_config=lora(), trainable_layers=1)
    names = {name for name, parameter in trainer.policy_model.named_parameters() if parameter.requires_grad}
    assert names and all(".layers.1." in name and "lora_" in name for name in names)
    assert not any("lora_" in name and ".layers.0." in name for name in trainer.policy_model.state_dict())
    assert trainer.frozen_states.depth == 1 and trainer.reference_shares_bottom
    if targets != "all-linear":
        runs = []
        for options in ({"trainable_layers": 1}, PLAIN):
            config = lora() if "trainable_layers" in options else lora(layers_to_transform=[1])
            torch.manual_seed(0)
            runs.append(run(tmp_path, ref_model=None, peft_config=config, **options))
        assert_same_run(*runs)


def counted(model):
    """Calls of each of its layers, which go on being counted."""
    calls = [0, 0]
    for number, layer in enumerate(getattr(model.model, layers_of(model).layers)):
        layer.register_forward_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
    return calls


@pytest.mark.parametrize("limit", ["1MB", 3 * 16 * 4 * 5, 0], ids=["all", "some", "none"])
def test_the_bottom_runs_once_a_rollout_as_far_as_its_states_are_kept(tmp_path, limit):
    expected = run(tmp_path, ref_model=None, trainable_layers=1, **cut(2))
    found = run(tmp_path, ref_model=None, trainable_layers=1, frozen_states_bytes=limit, **cut(2))
    assert_same_run(found, expected)

    trainer = toy_trainer(tmp_path, trainable_layers=1, num_ppo_epochs=3, frozen_states_bytes=limit, **cut(2))
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    calls = counted(trainer.policy_model)
    experience = loop.evaluate(trainer, rollout, torch.linspace(-1, 1, 8))
    assert calls == [1, 1], "the values' forward; the reference has layers of its own"
    stats = UpdateStats()
    for epoch in range(3):
        for rows in trainer.minibatches(epoch):
            loop.update(trainer, experience, rows, stats)
    kept = trainer.frozen_states
    assert (
        kept.nbytes
        == sum(states.nbytes for states in kept.kept.values())
        <= (10**6 if limit == "1MB" else limit)
    )
    assert calls[1] == 1 + 3 * 4
    if limit == "1MB":
        assert calls[0] == 1 and len(kept.kept) == 8
    elif limit == 0:
        assert calls[0] == 1 + 3 * 4 and not kept.kept
    else:
        assert calls[0] > 1 and 0 < len(kept.kept) < 8


def test_states_are_those_of_the_rollout_at_hand(tmp_path):
    trainer = toy_trainer(tmp_path, trainable_layers=1)
    loader = iter(trainer.get_train_dataloader())
    for _ in range(2):
        rollout = trainer.rollout(next(loader))
        experience = loop.evaluate(trainer, rollout, torch.linspace(-1, 1, 8))
        again = toy_trainer(tmp_path, model=toy_model(), **PLAIN)
        expected = loop.evaluate(again, rollout, torch.linspace(-1, 1, 8))
        torch.testing.assert_close(experience.ref_logprobs, expected.ref_logprobs, rtol=1e-5, atol=1e-5)


def test_the_reference_holds_copies_of_the_trained_layers_only(tmp_path):
    trainer = toy_trainer(tmp_path, trainable_layers=1)
    policy, reference = (
        dict(model.named_parameters()) for model in (trainer.policy_model, trainer.ref_model)
    )
    for name, parameter in policy.items():
        shared = parameter.data_ptr() == reference[name].data_ptr()
        assert shared == (".layers.1." not in name), name
    before = {name: parameter.clone() for name, parameter in reference.items()}
    trainer.train()
    assert all(torch.equal(parameter, before[name]) for name, parameter in reference.items())
    assert any(not torch.equal(policy[name], before[name]) for name in before)


def test_a_reference_whose_bottom_is_the_same_gives_up_its_own(tmp_path):
    same, other = toy_model(), toy_model(seed=9)
    for model, shares in ((same, True), (other, False)):
        trainer = toy_trainer(tmp_path, ref_model=model, trainable_layers=1)
        assert trainer.reference_shares_bottom == shares
        weights = [m.model.embed_tokens.weight.data_ptr() for m in (trainer.policy_model, model)]
        assert (weights[0] == weights[1]) == shares


def test_without_trainable_layers_what_requires_a_gradient_decides(tmp_path):
    trainer = toy_trainer(tmp_path, model=with_frozen_bottom(toy_model()))
    assert trainer.frozen_states.depth == 1
    assert toy_trainer(tmp_path).frozen_states.depth == 0
    assert toy_trainer(tmp_path, trainable_layers=1, packing=False).frozen_states.depth == 0


def test_a_layer_that_thaws_ends_the_run(tmp_path):
    trainer = toy_trainer(tmp_path, trainable_layers=1)
    trainer.policy_model.requires_grad_(True)
    with pytest.raises(RuntimeError, match=r"one of the 1 bottom layers .* requires a gradient now"):
        trainer.train()


def test_a_model_that_does_not_split_runs_whole(tmp_path):
    model = with_frozen_bottom(toy_model())
    forward = model.model.forward
    model.model.forward = lambda **named: _doubled(forward(**named))
    with pytest.warns(UserWarning, match="does not split into its frozen layers and the others"):
        trainer = toy_trainer(tmp_path, model=model)
    assert trainer.frozen_states.depth == 0


def _doubled(output):
    output.last_hidden_state = 2 * output.last_hidden_state + 1
    return output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainable_layers": 0}, "trainable_layers is 0, expected at least 1"),
        ({"trainable_layers": 3}, "trainable_layers is 3, and the model has 2 layers"),
        ({"trainable_layers": 1, "accelerate": False}, "needs a family that accelerate knows"),
        ({"frozen_states_bytes": "many"}, "frozen_states_bytes is 'many', expected a number of bytes"),
        (
            {"trainable_layers": 1, "gradient_checkpointing_kwargs": {"use_reentrant": True}},
            "asks for use_reentrant",
        ),
        (
            {"trainable_layers": 1, "peft_config": toy_lora(exclude_modules=["q_proj"])},
            "peft_config has one already",
        ),
    ],
)
def test_what_is_refused(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        toy_trainer(tmp_path, **options)


def test_adapters_further_down_are_refused(tmp_path):
    from peft import get_peft_model

    model = get_peft_model(toy_model(), toy_lora())
    with pytest.raises(ValueError, match="has adapters below its top 1 layers"):
        toy_trainer(tmp_path, model=model, trainable_layers=1)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_a_resumed_run_is_the_same_to_the_bit(tmp_path, lora):
    def options():
        config = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM") if lora else None
        torch.manual_seed(0)
        return {"trainable_layers": 1, "peft_config": config, "model": tiny_llama(), "num_ppo_epochs": 2}

    whole = tiny_trainer(tmp_path / "whole", save_strategy="steps", save_steps=2, **options())
    whole.train()
    resumed = tiny_trainer(tmp_path / "resumed", **options())
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-2")
    assert same(metrics(resumed), metrics(whole))
    assert same(snapshot(resumed), snapshot(whole))
