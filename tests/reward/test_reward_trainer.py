"""What a reward model's training computes, whatever its batches look like."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel
from transformers import AutoModelForSequenceClassification

from fastrlhf.models.backbone import is_accelerated
from tests.sft.test_sft_trainer import close, weights
from tests.support.preferences import conversations, pairs, reward_trainer
from tests.support.runs import same
from tests.support.sft import losses
from tests.support.tiny import tiny_gpt2_classifier, tiny_llama, tiny_llama_classifier


def trained(folder, **options):
    trainer = reward_trainer(folder, **options)
    trainer.train()
    return trainer


CASES = {
    "padded": {"unpadded": False},
    "transformers' own": {"accelerate": False},
    "transformers' own, without padding": {"accelerate": False, "unpadded": True},
    "micro-batches of one": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    "one micro-batch": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
    "checkpointed activations": {"gradient_checkpointing": True},
    "to a multiple": {"pad_to_multiple_of": 16},
    "padded to a multiple": {"unpadded": False, "pad_to_multiple_of": 16},
}


@pytest.fixture(scope="module")
def usual(tmp_path_factory):
    return trained(tmp_path_factory.mktemp("usual"))


@pytest.mark.parametrize("case", CASES)
def test_the_way_it_is_computed_does_not_change_what_is_learned(tmp_path, usual, case):
    other = trained(tmp_path, **CASES[case])
    close(usual, other)
    assert is_accelerated(other.model) == ("transformers" not in case)


@pytest.mark.parametrize("make", [tiny_llama_classifier, tiny_gpt2_classifier])
@pytest.mark.parametrize("pad_token", ["<pad>", "<eos>"])
def test_rewards_are_what_the_saved_model_gives(tmp_path, make, pad_token):
    held_out = pairs(6, seed=1)
    trainer = trained(tmp_path, model=make(), eval_dataset=held_out, pad_token=pad_token)
    trainer.save_model(tmp_path / "saved")
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved").eval()
    rewards = []
    for side in ("chosen", "rejected"):
        for row in held_out:
            tokens = trainer.processing_class(row["prompt"] + row[side] + " <eos>", return_tensors="pt")
            rewards.append(loaded(input_ids=tokens["input_ids"]).logits.item())
    metrics = trainer.evaluate()
    chosen, rejected = torch.tensor(rewards).chunk(2)
    assert metrics["eval_mean_reward"] == pytest.approx(sum(rewards) / len(rewards), rel=1e-4)
    assert metrics["eval_min_reward"] == pytest.approx(min(rewards), rel=1e-4)
    assert metrics["eval_max_reward"] == pytest.approx(max(rewards), rel=1e-4)
    assert metrics["eval_margin"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-3)
    assert metrics["eval_accuracy"] == pytest.approx((chosen > rejected).float().mean().item())
    expected = -torch.nn.functional.logsigmoid(chosen - rejected).mean().item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-5)


def test_it_learns_to_tell_the_two_apart(tmp_path):
    trainer = trained(tmp_path, learning_rate=1e-2, max_steps=30, eval_dataset=pairs(16, seed=5))
    assert losses(trainer)[0] > 0.6 > losses(trainer)[-1]
    assert trainer.evaluate()["eval_accuracy"] == 1


def test_margins_and_centring(tmp_path, usual):
    even = trained(tmp_path / "even", train_dataset=pairs(margin=0.0))
    assert same(losses(even), losses(usual))
    wide = trained(tmp_path / "wide", train_dataset=pairs(margin=1))
    assert losses(wide)[0] > losses(usual)[0] + 0.3
    options = {"learning_rate": 1e-2, "max_steps": 30}
    free, centred = (
        trained(tmp_path / str(value), center_rewards_coefficient=value, **options) for value in (None, 1.0)
    )
    assert abs(centred.state.log_history[-2]["mean_reward"]) < abs(free.state.log_history[-2]["mean_reward"])


def test_pairs_with_a_longer_sequence_are_left_out(tmp_path):
    longest = max(
        len((row["prompt"] + row[side]).split()) + 1 for row in pairs() for side in ("chosen", "rejected")
    )
    assert len(reward_trainer(tmp_path, max_length=longest).train_dataset) == 24
    fewer = reward_trainer(tmp_path, max_length=longest - 1).train_dataset
    assert 0 < len(fewer) < 24
    assert max(len(ids) for side in ("chosen_ids", "rejected_ids") for ids in fewer[side]) < longest


def test_conversations(tmp_path):
    trainer = trained(tmp_path, train_dataset=conversations())
    assert losses(trainer)[-1] < losses(trainer)[0]


def test_an_adapter_and_the_head_are_trained_and_saved(tmp_path):
    lora = LoraConfig(r=2, target_modules=["q_proj", "down_proj"], task_type="SEQ_CLS")
    trainer = reward_trainer(tmp_path, peft_config=lora)
    before = weights(trainer)
    trainer.train()
    moved = {name for name, weight in weights(trainer).items() if not torch.equal(weight, before[name])}
    assert moved and all("lora_" in name or "score.modules_to_save" in name for name in moved)
    assert any("score" in name for name in moved)
    trainer.save_model(tmp_path / "saved")
    loaded = PeftModel.from_pretrained(tiny_llama_classifier(), tmp_path / "saved")
    for name, weight in loaded.state_dict().items():
        torch.testing.assert_close(weight, weights(trainer)[name])


def test_a_language_model_by_its_path_gets_a_head(tmp_path, usual):
    tiny_llama().save_pretrained(tmp_path / "model")
    usual.processing_class.save_pretrained(tmp_path / "model")
    one, other = (
        reward_trainer(tmp_path, model=str(tmp_path / "model"), processing_class=None, seed=seed)
        for seed in (1, 2)
    )
    assert one.model.score.weight.shape[0] == 1
    assert not torch.equal(one.model.score.weight, other.model.score.weight), "as the seed says"
    assert torch.equal(one.model.model.norm.weight, other.model.model.norm.weight)


def test_evaluations_of_several_and_of_other_rows(tmp_path, usual):
    metrics = usual.evaluate(pairs(5, seed=2))
    assert usual.evaluate({"new": pairs(5, seed=2)})["eval_new_loss"] == metrics["eval_loss"]
    several = reward_trainer(tmp_path, eval_dataset={"a": pairs(3), "b": pairs(4)})
    assert {"eval_a_loss", "eval_b_loss", "eval_accuracy"} <= several.evaluate().keys()
