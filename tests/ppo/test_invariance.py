"""What must not change a result: padding, cuts of a batch, packing, recomputation."""

import dataclasses

import pytest
import torch

from fastrlhf import PPOTrainer
from fastrlhf.models import actor_critic
from fastrlhf.ppo import loop
from fastrlhf.ppo.rollout import Rollout
from fastrlhf.ppo.stats import UpdateStats
from tests.support.toy import (
    EOS,
    PAD,
    assert_same_gradients,
    plain_logprobs,
    plain_values,
    taken_update,
    toy_experience,
    toy_lora,
    toy_model,
    toy_rollout,
    toy_trainer,
)
from tests.support.toy_runs import assert_same_run, cut, run

SHAPES = ("llama", "gpt2")
# Other shapes add float32 products up in another order: an ulp (1.2e-7) for each of some hundred additions,
# in numbers of size 1 to 10.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
GRADIENTS = {"rtol": 1e-4}
ROWS = torch.tensor([5, 0, 3, 7, 1, 2, 6, 4])
FIELDS = ("logprobs", "ref_logprobs", "values", "kl", "penalty", "advantages", "returns")


def wider(rollout: Rollout, columns: int) -> Rollout:
    """The same rollout with more padding after the responses."""
    return dataclasses.replace(
        rollout, response_ids=torch.nn.functional.pad(rollout.response_ids, (0, columns), value=PAD)
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
def test_padding_before_prompts_and_after_responses(tmp_path, shape, packing):
    trainer = toy_trainer(
        tmp_path, model=toy_model(shape), ref_model=toy_model(shape, 9), packing=packing, whiten_rewards=True
    )
    rows = torch.arange(8)
    # one column after the longest response in both, so that its score has the same place
    first = toy_experience(trainer, wider(toy_rollout(), 1), off_policy=0.3)
    second = toy_experience(trainer, wider(toy_rollout(left=9), 4))
    for name in FIELDS:
        expected = getattr(toy_experience(trainer, wider(toy_rollout(), 1)), name)
        torch.testing.assert_close(getattr(second, name)[:, :7], expected, **CLOSE)
        assert not getattr(second, name)[:, 7:].any()
    for name in ("logprobs", "values"):  # the same numbers off policy, without new noise
        moved = torch.nn.functional.pad(getattr(first, name), (0, 3))
        setattr(second, name, moved)
    loss, gradients = taken_update(trainer, first, rows)
    padded_loss, padded_gradients = taken_update(trainer, second, rows)
    torch.testing.assert_close(padded_loss, loss, **CLOSE)
    assert_same_gradients(padded_gradients, gradients, **GRADIENTS)


@pytest.mark.parametrize("shape", SHAPES)
def test_micro_batch_size_in_gradients(tmp_path, shape):
    found = []
    for micro_batch in (1, 2, 8):
        trainer = toy_trainer(tmp_path, model=toy_model(shape), **cut(micro_batch))
        found.append(taken_update(trainer, toy_experience(trainer, toy_rollout(), off_policy=0.3), ROWS))
    for loss, gradients in found[1:]:
        torch.testing.assert_close(loss, found[0][0], **CLOSE)
        assert_same_gradients(gradients, found[0][1], **GRADIENTS)


@pytest.mark.parametrize("shape", SHAPES)
def test_micro_batch_size_in_a_run(tmp_path, shape):
    expected = run(tmp_path, shape=shape, **cut(8))
    for micro_batch in (1, 4):
        assert_same_run(run(tmp_path, shape=shape, **cut(micro_batch)), expected)


@pytest.mark.parametrize("rows", [1, 3, 64])
def test_local_rollout_forward_batch_size(tmp_path, rows):
    expected = run(tmp_path, local_rollout_forward_batch_size=8)
    assert_same_run(run(tmp_path, local_rollout_forward_batch_size=rows), expected)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own_critic", [False, True], ids=["shared", "own"])
def test_packing(tmp_path, shape, own_critic):
    found = []
    for packing in (False, True):
        critic = toy_model(shape, 4, scorer=True) if own_critic else None
        trainer = toy_trainer(
            tmp_path,
            model=toy_model(shape),
            ref_model=toy_model(shape, 9),
            value_model=critic,
            packing=packing,
            **cut(4),
        )
        experience = toy_experience(trainer, toy_rollout())
        expected = plain_logprobs(trainer.policy_model, experience.rollout, 0.8)
        torch.testing.assert_close(experience.logprobs.double(), expected, **CLOSE)
        worth = torch.where(
            experience.rollout.state_mask, plain_values(trainer.model, experience.rollout), 0.0
        )
        torch.testing.assert_close(experience.values.double(), worth, **CLOSE)
        found.append(
            taken_update(trainer, toy_experience(trainer, toy_rollout(), off_policy=0.3), torch.arange(8))
        )
    torch.testing.assert_close(found[1][0], found[0][0], **CLOSE)
    assert_same_gradients(found[1][1], found[0][1], **GRADIENTS)


@pytest.mark.parametrize("shape", SHAPES)
def test_packing_in_a_run(tmp_path, shape):
    assert_same_run(run(tmp_path, shape=shape, packing=True), run(tmp_path, shape=shape, packing=False))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("own_critic", [False, True], ids=["shared", "own"])
def test_reused_rollout_logprobs(tmp_path, shape, own_critic):
    """The same run as with an evaluation of the policy, without its head's product."""
    runs = []
    for reuse in (False, True):
        critic = toy_model(shape, 4, scorer=True) if own_critic else None
        runs.append(run(tmp_path, shape=shape, value_model=critic, reuse_rollout_logprobs=reuse))
    assert_same_run(*runs)


def test_the_policy_is_not_evaluated_where_its_logprobs_are_at_hand(tmp_path, monkeypatch):
    heads, head = [], actor_critic.linear_logprob
    monkeypatch.setattr(
        actor_critic, "linear_logprob", lambda *args, **named: heads.append(1) or head(*args, **named)
    )
    for options, expected in (
        ({}, 1),
        ({"reuse_rollout_logprobs": False}, 2),
        ({"rollout_correction_cap": 2.0}, 2),
    ):
        trainer = toy_trainer(tmp_path, **options)
        rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
        heads.clear()
        experience = loop.evaluate(trainer, rollout, torch.linspace(-1, 1, 8))
        assert len(heads) == expected, options
        expected = plain_logprobs(trainer.policy_model, rollout, 0.8)
        torch.testing.assert_close(experience.logprobs.double(), expected, **CLOSE)


def test_logprobs_of_other_tokens_are_not_reused(tmp_path):
    class Edits(PPOTrainer):
        def generate_responses(self, input_ids, attention_mask):
            tokens = super().generate_responses(input_ids, attention_mask).clone()
            tokens[:, 0] = (tokens[:, 0] + 1) % 8
            return tokens

    trainer = toy_trainer(tmp_path, cls=Edits)
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    assert rollout.sampled_logprobs is None
    experience = loop.evaluate(trainer, rollout, torch.linspace(-1, 1, 8))
    expected = plain_logprobs(trainer.policy_model, rollout, 0.8)
    torch.testing.assert_close(experience.logprobs.double(), expected, **CLOSE)


@pytest.mark.parametrize("shape", SHAPES)
def test_gradient_checkpointing(tmp_path, shape):
    # It recomputes what was computed: the same operations on the same shapes, and so the same bits.
    expected = run(tmp_path, shape=shape, gradient_checkpointing=False)
    actual = run(tmp_path, shape=shape, gradient_checkpointing=True)
    assert str(actual[0]) == str(expected[0])  # as text: NaN is NaN
    for name, tensor in actual[1].items():
        assert torch.equal(tensor, expected[1][name]), name


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize(("shape", "lora"), [("llama", False), ("llama", True), ("gpt2", False)])
@pytest.mark.parametrize("reuse", [False, True], ids=["evaluated", "reused"])
def test_the_ratio_of_the_first_minibatch_is_one(tmp_path, shape, packing, lora, reuse):
    # The forward that gave the old log-probabilities and the update's are cut alike: the same bits. The generator's
    # were computed a token at a time: the same but for float32's rounding.
    trainer = toy_trainer(
        tmp_path,
        model=toy_model(shape),
        packing=packing,
        local_rollout_forward_batch_size=2,
        num_mini_batches=2,
        peft_config=toy_lora() if lora else None,
        reuse_rollout_logprobs=reuse,
        **cut(2),
    )
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    experience = loop.evaluate(trainer, rollout, torch.linspace(-1, 1, 8))
    rows = next(iter(trainer.minibatches(epoch=0)))
    stats = UpdateStats()
    loop.update(trainer, experience, rows, stats)
    metrics = stats.metrics()
    rounding = 1e-5 if reuse else 0.0
    assert abs(metrics["val/ratio"] - 1.0) <= rounding
    assert metrics["policy/approxkl_avg"] <= rounding**2
    assert metrics["policy/clipfrac_avg"] == 0.0
    loop.update(trainer, experience, rows, stats)
    assert abs(stats.metrics()["val/ratio"] - 1.0) > 1e-4


@pytest.mark.parametrize("minibatches", [1, 2, 4])
@pytest.mark.parametrize("micro_batch", [1, 2, 8])
def test_one_optimizer_update_for_each_minibatch_of_each_epoch(tmp_path, minibatches, micro_batch):
    trainer = toy_trainer(tmp_path, num_mini_batches=minibatches, num_ppo_epochs=3, **cut(micro_batch))
    steps = []
    trainer.optimizer.register_step_post_hook(lambda *_: steps.append(1))
    trainer.train()
    assert len(steps) == 3 * minibatches


@pytest.mark.parametrize("minibatches", [1, 2, 4])
def test_minibatches_cover_a_batch_once_in_each_epoch(tmp_path, minibatches):
    trainer = toy_trainer(tmp_path, num_mini_batches=minibatches)
    orders = []
    for epoch in range(3):
        parts = [rows.tolist() for rows in trainer.minibatches(epoch)]
        assert [len(part) for part in parts] == [8 // minibatches] * minibatches
        orders.append([row for part in parts for row in part])
        assert sorted(orders[-1]) == list(range(8))
    assert orders[0] == list(range(8))
    assert orders[1] != orders[2]


@pytest.mark.parametrize("packing", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("length", [0, 1])
def test_every_response_empty_or_one_token(tmp_path, length, packing):
    trainer = toy_trainer(tmp_path, packing=packing, **cut(2))
    rollout = toy_rollout()
    rollout.lengths.fill_(length)
    rollout.response_ids.fill_(PAD)
    rollout.response_ids[:, :length] = EOS
    experience = toy_experience(trainer, rollout)
    assert experience.logprobs.isfinite().all()
    assert bool(experience.advantages.any()) == (length == 1)
    loss, gradients = taken_update(trainer, experience, torch.arange(8))
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients.values())
