"""What PPOConfig adds to TRL's: each option changes what it says, by numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from datasets import Dataset

from fastrlhf.kernels import kl_estimate
from fastrlhf.ppo import loop
from fastrlhf.ppo.advantages import estimate_advantages, has_signal
from fastrlhf.ppo.pretraining import Pretraining
from fastrlhf.ppo.roles import mix_reference
from fastrlhf.ppo.shaping import RunningMoments, overlong_penalty
from tests.support.runs import metrics, same, snapshot
from tests.support.tiny import tiny_llama, tiny_llama_classifier, tiny_trainer
from tests.support.toy import (
    assert_same_gradients,
    exact,
    row_tokens,
    taken_update,
    toy_experience,
    toy_lora,
    toy_model,
    toy_prompts,
    toy_rollout,
    toy_trainer,
)

SAVING = {"save_strategy": "steps", "save_steps": 1}
TEXT = Dataset.from_dict({"input_ids": [[1, 2, 3], [4, 5, 6, 7], [8, 9], [10, 11, 12], [1, 3, 5, 7]]})

# Estimators


def estimate(rewards, lengths, estimator, values=None, group_size=1, **options):
    rewards, lengths = torch.tensor(rewards), torch.tensor(lengths)
    positions = torch.arange(rewards.shape[1])
    mask = positions < lengths[:, None]
    return estimate_advantages(
        rewards,
        values,
        mask,
        mask,
        estimator=estimator,
        gamma=options.get("gamma", 1.0),
        lam=options.get("lam", 0.5),
        group_size=group_size,
    )


def test_reinforce_plus_plus_whitens_the_rewards_to_come():
    found = estimate([[0.1, 0.2, 1.0], [0.0, 2.0, 0.0]], [3, 2], "reinforce++", gamma=0.5)
    returns = torch.tensor([0.1 + 0.5 * (0.2 + 0.5), 0.2 + 0.5, 1.0, 1.0, 2.0])
    expected = (returns - returns.mean()) / (returns.var() + 1e-8).sqrt()
    torch.testing.assert_close(found.advantages, torch.cat([expected, torch.zeros(1)]).view(2, 3))
    assert found.returns is None


def test_groups_compare_sums_of_rewards():
    # sums 1.5, 0.5 | 4, 2
    rewards = [[0.5, 1.0], [0.5, 0.0], [4.0, 0.0], [1.0, 1.0]]
    found = estimate(rewards, [2, 1, 1, 2], "rloo", group_size=2)
    assert found.advantages.tolist() == [[1.0, 1.0], [-1.0, 0.0], [2.0, 0.0], [-2.0, -2.0]]
    found = estimate(rewards, [2, 1, 1, 2], "dr_grpo", group_size=2)
    assert found.advantages.tolist() == [[0.5, 0.5], [-0.5, 0.0], [1.0, 0.0], [-1.0, -1.0]]
    found = estimate(rewards, [2, 1, 1, 2], "grpo", group_size=2)
    one, two = 0.5 / (math.sqrt(0.5) + 1e-4), 1 / (math.sqrt(2) + 1e-4)
    torch.testing.assert_close(
        found.advantages, torch.tensor([[one, one], [-one, 0.0], [two, 0.0], [-two, -two]])
    )


@pytest.mark.parametrize("estimator", ["grpo", "dr_grpo", "rloo", "reinforce++"])
def test_without_a_critic(tmp_path, estimator):
    """It trains, resumes to the bit, and its checkpoint holds no critic."""
    options = {"advantage_estimator": estimator, "num_generations": 4, **SAVING}
    whole = tiny_trainer(tmp_path, **options)
    before = snapshot(whole)["policy"]
    assert whole.value_model is None and whole.model.value_model is None
    whole.train()
    assert not same(before, snapshot(whole)["policy"])
    assert not (tmp_path / "checkpoint-2" / "critic.safetensors").exists()
    resumed = tiny_trainer(tmp_path, **options)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert same(metrics(resumed), metrics(whole))
    assert same(snapshot(resumed), snapshot(whole))


def test_a_critic_is_not_taken_for_none(tmp_path):
    with pytest.raises(ValueError, match="advantage_estimator='rloo' has no critic: leave value_model out"):
        tiny_trainer(
            tmp_path, advantage_estimator="rloo", num_generations=2, value_model=tiny_llama_classifier()
        )
    tiny_trainer(tmp_path, **SAVING, total_episodes=8).train()
    with pytest.raises(RuntimeError, match=r"it holds a critic\.safetensors"):
        tiny_trainer(tmp_path, advantage_estimator="reinforce++").train(resume_from_checkpoint=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"advantage_estimator": "vtrace"}, "advantage_estimator is 'vtrace', expected one of gae, grpo"),
        ({"advantage_estimator": "grpo"}, "compares responses to one prompt: set num_generations"),
        ({"skip_flat_groups": True}, "skip_flat_groups compares responses to one prompt"),
        ({"num_generations": 0}, "num_generations is 0, expected at least 1"),
        ({"num_generations": 3}, "num_generations is 3, which does not divide the batch of 8"),
        ({"kl_in": "value"}, "kl_in is 'value', expected one of reward, loss"),
        ({"kl_in": "loss"}, "use kl_estimator='k3'"),
        ({"ref_reset_steps": 0}, "ref_reset_steps is 0"),
        ({"ref_reset_steps": 1, "device_memory": "1GB"}, "a reference that may be away cannot be reset"),
        ({"reward_clip": 0.0}, "reward_clip is 0.0, expected more than 0"),
        ({"overlong_buffer": 7}, "overlong_buffer is 7, expected at most response_length=6"),
        ({"overlong_penalty": -1.0}, "overlong_penalty is -1.0"),
        ({"ptx_coef": -1.0}, "ptx_coef is -1.0"),
        ({"ptx_coef": 1.0}, "pretrain_dataset is missing: they go together"),
    ],
)
def test_what_cannot_be_meant(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        tiny_trainer(tmp_path, **options)


# Groups


def test_several_responses_to_a_prompt(tmp_path):
    seen = []

    def reward(prompts, completions):
        seen.append((prompts, completions))
        return [0.0] * len(prompts)

    trainer = tiny_trainer(tmp_path, num_generations=4, reward_model=reward, total_episodes=64)
    assert trainer.args.num_total_batches == 8
    trainer.train()
    assert all(len(set(prompts[start : start + 4])) == 1 for prompts, _ in seen for start in (0, 4))
    assert all(len(set(completions)) > 4 for _, completions in seen), "they were drawn apart"
    # sixteen prompts, two a step: an epoch of eight steps shows each once
    assert len({prompts[start] for prompts, _ in seen for start in (0, 4)}) == 16
    assert trainer.state.epoch == 1.0


def test_a_group_without_signal_is_skipped(tmp_path):
    assert has_signal(torch.tensor([1.0, 1.0, 1.0, 2.0]), 2).tolist() == [False, False, True, True]
    trainer = toy_trainer(tmp_path, num_generations=2, skip_flat_groups=True, dataset=toy_prompts(8))
    rollout = toy_rollout()
    scores = torch.tensor([1.0, 1.0, 0.0, 2.0, 3.0, 3.0, -1.0, 1.0])
    experience = loop.evaluate(trainer, rollout, scores)
    assert experience.mask.any(dim=1).tolist() == [False, False, True, True, False, False, False, True]
    assert experience.state_mask.any(dim=1).tolist() == [False, False, True, True, False, False, True, True]
    assert not experience.advantages[[0, 1, 4, 5]].any()
    _, gradients = taken_update(trainer, experience, torch.arange(8))
    _, of_the_others = taken_update(trainer, experience, torch.tensor([2, 3, 6, 7]))
    assert_same_gradients(gradients, of_the_others, rtol=1e-5)


# The KL and the reference


def test_kl_in_the_loss(tmp_path):
    options = {"ref_model": toy_model(seed=9), "kl_coef": 0.3, "kl_estimator": "k3"}
    trainer = toy_trainer(tmp_path, kl_in="loss", **options)
    without = toy_trainer(tmp_path, kl_in="loss", **{**options, "kl_coef": 0.0})
    rollout, rows = toy_rollout(), torch.arange(8)
    experience = toy_experience(trainer, rollout)
    assert not experience.penalty.any() and experience.kl.any()
    assert same(experience.advantages, toy_experience(without, rollout).advantages)
    loss, gradients = taken_update(trainer, experience, rows)
    plain_loss, plain_gradients = taken_update(without, experience, rows)
    # the KL's own gradient, row by row in float64
    model, reference = exact(trainer.policy_model), exact(trainer.ref_model)
    kl, tokens = 0.0, int(rollout.lengths.sum())
    for row in range(8):
        ids, prompt = row_tokens(rollout, row)
        theirs, ours = (
            torch.log_softmax(each(input_ids=ids).logits[0, prompt - 1 : -1] / 0.8, dim=-1).gather(
                1, ids[0, prompt:, None]
            )
            for each in (reference, model)
        )
        kl = kl + kl_estimate(ours, theirs.detach(), "k3").sum() / tokens
    (0.3 * kl).backward()
    torch.testing.assert_close(loss - plain_loss, 0.3 * kl.detach().float(), rtol=1e-4, atol=1e-6)
    expected = {
        name: plain_gradients[f"policy.{name}"] + parameter.grad.float()
        for name, parameter in model.named_parameters()
    }
    actual = {name: gradients[f"policy.{name}"] for name in expected}
    assert_same_gradients(actual, expected, rtol=1e-4)


def test_the_reference_is_reset(tmp_path):
    trainer = tiny_trainer(tmp_path, ref_reset_steps=2, learning_rate=1e-1, **SAVING)
    kept = []
    conclude = trainer.conclude_step

    def concludes(*args):
        conclude(*args)
        kept.append(
            (
                dict(snapshot(trainer)["policy"]),
                {n: t.clone() for n, t in trainer.ref_model.state_dict().items()},
            )
        )

    trainer.conclude_step = concludes
    trainer.train()
    assert [same(policy, reference) for policy, reference in kept] == [False, True, False, True]
    assert same(kept[2][1], kept[1][0])
    # a run that goes on from the third step has the reference of the second
    resumed = tiny_trainer(tmp_path, ref_reset_steps=2, learning_rate=1e-1)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-3")
    assert same(metrics(resumed), metrics(trainer))
    assert same(snapshot(resumed), snapshot(trainer))


def test_an_adapter_cannot_be_reset_away(tmp_path):
    with pytest.raises(
        ValueError, match="ref_reset_steps changes the reference, which here is the policy's own base"
    ):
        toy_trainer(tmp_path, peft_config=toy_lora(), ref_reset_steps=1)


def test_a_reference_moves_part_of_the_way():
    policy, reference = tiny_llama(), tiny_llama(seed=3)
    ours, theirs = (model.lm_head.weight.detach().clone() for model in (policy, reference))
    mix_reference(policy, reference, 0.25)
    torch.testing.assert_close(reference.lm_head.weight.detach(), 0.25 * ours + 0.75 * theirs)
    assert torch.equal(policy.lm_head.weight.detach(), ours)


# Scores


def test_scores_are_normalised_over_the_run():
    moments = RunningMoments()
    torch.testing.assert_close(moments.normalise(torch.tensor([2.0, 2.0])), torch.zeros(2))
    found = moments.normalise(torch.tensor([4.0, 8.0]))
    so_far = torch.tensor([2.0, 2.0, 4.0, 8.0])
    torch.testing.assert_close(found, (torch.tensor([4.0, 8.0]) - so_far.mean()) / so_far.std())
    again = RunningMoments(*moments.as_list())
    assert torch.equal(again.normalise(torch.ones(3)), moments.normalise(torch.ones(3)))


def test_normalised_and_clipped_in_the_trainer(tmp_path):
    given = [10.0, 12.0, 14.0, 16.0, 18.0, 20.0, 22.0, 100.0]
    options = {"reward_model": lambda prompts, completions: given, "total_episodes": 16, **SAVING}
    trainer = tiny_trainer(tmp_path, normalize_rewards=True, reward_clip=0.5, **options)
    rollout = trainer.rollout(next(iter(trainer.get_train_dataloader())))
    scores = torch.tensor(given)
    expected = ((scores - scores.mean()) / scores.std()).clamp(-0.5, 0.5)
    torch.testing.assert_close(trainer.score(rollout), expected)
    assert expected.abs().max() == 0.5 and expected.abs().min() < 0.5

    whole = tiny_trainer(tmp_path / "whole", normalize_rewards=True, **options)
    whole.train()
    resumed = tiny_trainer(tmp_path / "whole", normalize_rewards=True, **options)
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoint-1")
    assert same(metrics(resumed), metrics(whole))
    assert resumed.score_moments.as_list() == whole.score_moments.as_list()


def test_overlong_responses_pay(tmp_path):
    found = overlong_penalty(torch.tensor([1, 4, 5, 7, 8]), longest=8, buffer=4)
    assert found.tolist() == [0.0, 0.0, 0.25, 0.75, 1.0]
    trainer = toy_trainer(tmp_path, overlong_buffer=3, overlong_penalty=2.0)
    plain = toy_trainer(tmp_path)
    rollout = toy_rollout()
    difference = plain.score(rollout) - trainer.score(rollout)
    # lengths 0, 6, 1, 3, 5, 2, 0, 6 of at most 6
    torch.testing.assert_close(difference, 2 * torch.tensor([0, 3, 0, 0, 2, 0, 0, 3]) / 3)


# Text beside the rollouts


def with_text(folder, **options):
    given = {"pretrain_dataset": TEXT, "ptx_coef": 0.5, "num_mini_batches": 2, **options}
    return tiny_trainer(folder, **given)


def test_the_language_models_loss_is_added(tmp_path):
    trainer = with_text(tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=4)
    rows = trainer.pretraining.batch(0, 4)
    assert len(rows) == 4
    trainer.model.zero_grad()
    for loss in trainer.pretraining_losses(4):
        loss.backward()
    found = {n: p.grad.clone() for n, p in trainer.policy_model.named_parameters() if p.grad is not None}
    model, total, tokens = exact(trainer.policy_model), 0.0, 0
    model.zero_grad()
    for row in rows:
        log_p = torch.log_softmax(model(input_ids=row[None]).logits[0, :-1], dim=-1)
        total = total - log_p.gather(1, row[1:, None]).sum()
        tokens += len(row) - 1
    (0.5 * total / tokens).backward()
    assert_same_gradients(found, {n: p.grad for n, p in model.named_parameters()}, rtol=1e-5)


def test_text_is_seen_in_an_order_of_its_own_and_again_after_a_resumption(tmp_path):
    whole = with_text(tmp_path, **SAVING)
    assert len(whole.pretraining.batch(0, 99)) == len(TEXT), "a batch is no more than all of it"
    once = [tuple(row.tolist()) for number in range(2) for row in whole.pretraining.batch(number, 2)]
    assert len(set(once)) == 4 and set(once) <= {tuple(row) for row in TEXT["input_ids"]}
    whole.train()
    resumed = with_text(tmp_path)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert same(snapshot(resumed), snapshot(whole))
    plain = tiny_trainer(tmp_path / "plain", num_mini_batches=2)
    plain.train()
    assert not same(snapshot(plain)["policy"], snapshot(whole)["policy"])


def test_long_text_is_cut_and_short_text_refused():
    rows = [{"input_ids": list(range(9))}]
    assert [row.tolist() for row in Pretraining(rows, 4, 0).batch(3, 1)] == [[0, 1, 2, 3]]
    with pytest.raises(ValueError, match="row 1 of pretrain_dataset has fewer than two tokens"):
        Pretraining([*rows, {"input_ids": [1]}], None, 0)
    with pytest.raises(ValueError, match="pretrain_dataset is empty"):
        Pretraining([], None, 0)
