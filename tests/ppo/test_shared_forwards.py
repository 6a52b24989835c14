"""Forwards that serve twice: the first update's for the evaluation, the reference's for a reward model on its base."""

from __future__ import annotations

import pytest
import torch

from fastrlhf.ppo import PPOTrainer, loop
from tests.support.runs import metrics, same, snapshot
from tests.support.toy import toy_lora, toy_model, toy_trainer
from tests.support.toy_runs import assert_same_run, cut, run


def layer_calls(model):
    """A list that grows by one with each call of the backbone's first layer."""
    calls = []
    model.model.layers[0].register_forward_hook(lambda *_: calls.append(1))
    return calls


class Twice(PPOTrainer):
    """The trainer without a forward that is made ahead."""

    first_update_has_all_rows = False


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"reuse_rollout_logprobs": False},
        {"trainable_layers": 1},
        {"gradient_checkpointing": True},
        {"local_rollout_forward_batch_size": 3},
        {"value_model": 4},
        {"peft_config": 0},
    ],
    ids=str,
)
def test_the_first_update_goes_on_from_the_evaluation_to_the_bit(tmp_path, options):
    trainers = []
    for cls in (PPOTrainer, Twice):
        made = {"value_model": toy_model(seed=4, scorer=True)} if "value_model" in options else {}
        made |= {"peft_config": toy_lora()} if "peft_config" in options else {}
        torch.manual_seed(0)
        trainer = toy_trainer(tmp_path, cls=cls, num_ppo_epochs=2, total_episodes=16, **options | made)
        trainer.train()
        trainers.append(trainer)
    if "local_rollout_forward_batch_size" in options:  # products of other shapes round otherwise
        runs = [(metrics(trainer)[:-1], trainer.model.state_dict()) for trainer in trainers]
        assert_same_run(*runs)
    else:
        assert same(*(metrics(trainer) for trainer in trainers))
        assert same(*(snapshot(trainer) for trainer in trainers))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 3),
        (cut(4), 1 + 3 * 2),
        ({"num_mini_batches": 2}, 1 + 3 * 2),
        ({"padded_averages": True}, 1 + 3),
    ],
    ids=["one forward an update", "micro-batches", "minibatches", "padded averages"],
)
def test_forwards_of_the_policy_in_a_step(tmp_path, options, expected):
    trainer = toy_trainer(tmp_path, num_ppo_epochs=3, **options)
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    trainer.rollout = lambda prompts: rollout
    calls = layer_calls(trainer.policy_model)
    trainer.train()
    assert len(calls) == expected


def on_base_of(policy, seed=3):
    """A reward model on the policy's own tensors."""
    model = toy_model(seed=seed, scorer=True)
    model.model.load_state_dict(policy.model.state_dict(), assign=True)
    return model


def lora_run(folder, reward_of, **options):
    policy = toy_model()
    reward = reward_of(policy)
    torch.manual_seed(0)
    lora = {"peft_config": toy_lora(), "ref_model": None}
    return run(folder, model=policy, reward_model=reward, **lora, **options)


@pytest.mark.parametrize(
    "options", [{}, {"frozen_states_bytes": 0}, {"local_rollout_forward_batch_size": 3}], ids=str
)
def test_a_run_with_a_reward_model_on_the_base_is_that_with_a_copy(tmp_path, options):
    def copied(policy):
        reward = on_base_of(policy)
        reward.model.load_state_dict(
            {name: tensor.clone() for name, tensor in reward.model.state_dict().items()}, assign=True
        )
        return reward

    expected = lora_run(tmp_path, copied)
    assert_same_run(lora_run(tmp_path, on_base_of, **options), expected)


@pytest.mark.parametrize(("limit", "expected"), [("1MB", 1), (0, 2)])
def test_one_forward_gives_reward_and_reference(tmp_path, limit, expected):
    policy = toy_model()
    reward = on_base_of(policy)
    trainer = toy_trainer(
        tmp_path, model=policy, reward_model=reward, peft_config=toy_lora(), frozen_states_bytes=limit
    )
    assert trainer.reference_states.sharers == [reward]
    batches = iter(trainer.get_train_dataloader())
    for _ in range(2):
        rollout = trainer.rollout(next(batches))
        calls = layer_calls(policy), layer_calls(reward)
        scores = trainer.score(rollout)
        ahead = loop.forward_ahead(trainer, rollout)
        loop.evaluate(trainer, rollout, scores, ahead)
        assert sum(map(len, calls)) == expected + 1, "and the policy's own"


def test_other_reward_models_share_nothing(tmp_path):
    policy, trained = toy_model(), toy_model()
    other_norm = on_base_of(policy)
    other_norm.model.norm.variance_epsilon = 0.1
    for model, reward, options in (
        (toy_model(), toy_model(scorer=True), {"peft_config": toy_lora()}),
        (policy, other_norm, {"peft_config": toy_lora()}),
        (trained, on_base_of(trained), {}),  # whose reference is a copy
    ):
        trainer = toy_trainer(tmp_path, model=model, reward_model=reward, **options)
        assert trainer.reference_states.sharers == []
