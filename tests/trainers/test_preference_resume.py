"""Runs on preferences go on to the bit; kills and signals too."""

from __future__ import annotations

import signal
import time

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from fastrlhf.trainers.checkpoint import CheckpointError, check_checkpoint, checkpoints
from tests.sft.test_sft_resume import EVERY_STEP, Signaller, StopAt, logged, snapshot
from tests.support import process
from tests.support.preferences import TRAINERS, dpo_trainer, pairs, reward_trainer
from tests.support.runs import same
from tests.support.sft import losses
from tests.support.tiny import tiny_gpt2, tiny_llama

LORA = {"r": 2, "target_modules": ["q_proj", "down_proj"], "lora_dropout": 0.1}


def adapted():
    """A model with an adapter of its own, the same every time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return get_peft_model(tiny_llama(), LoraConfig(**LORA, init_lora_weights=False))


CASES = {
    "dpo": ("dpo", {}),
    "dpo, ipo": ("dpo", {"loss_type": "ipo"}),
    "dpo, over epochs": ("dpo", {"train_dataset": lambda: pairs(10)}),
    "dpo, precomputed": ("dpo", {"precompute_ref_log_probs": True}),
    "dpo, dropout": ("dpo", {"model": tiny_gpt2, "accelerate": False, "disable_dropout": False}),
    "dpo, new adapter": ("dpo", {"peft_config": lambda: LoraConfig(**LORA), "disable_dropout": False}),
    "dpo, old adapter": ("dpo", {"model": adapted}),
    "reward": ("reward", {}),
    "reward, margin and centre": (
        "reward",
        {"train_dataset": lambda: pairs(margin=0.3), "center_rewards_coefficient": 0.1},
    ),
    "reward, adapter": ("reward", {"peft_config": lambda: LoraConfig(**LORA, task_type="SEQ_CLS")}),
    "reward, a rest": ("reward", {"train_dataset": lambda: pairs(11), "gradient_accumulation_steps": 3}),
}


@pytest.mark.parametrize("case", CASES)
def test_it_goes_on_to_the_bit(tmp_path, case):
    stage, given = CASES[case]

    def options():
        return EVERY_STEP | {name: value() if callable(value) else value for name, value in given.items()}

    whole = TRAINERS[stage](tmp_path / "whole", **options())
    whole.train()
    cut = TRAINERS[stage](tmp_path / "cut", callbacks=[StopAt(3)], **options())
    cut.train()
    resumed = TRAINERS[stage](tmp_path / "cut", **options())
    resumed.train(resume_from_checkpoint=True)
    assert cut.state.global_step == 3 and len(losses(resumed)) == 6
    assert same(logged(resumed), logged(whole))
    assert same(snapshot(resumed), snapshot(whole))


def test_a_checkpoint_of_another_trainer(tmp_path):
    dpo_trainer(tmp_path, callbacks=[StopAt(1)], **EVERY_STEP).train()
    with pytest.raises(CheckpointError, match="is fastrlhf-dpo version 1, expected fastrlhf-reward"):
        reward_trainer(tmp_path).train(resume_from_checkpoint=True)
    with pytest.raises(CheckpointError, match="rows=24, and this run has rows=9"):
        dpo_trainer(tmp_path, train_dataset=pairs(9)).train(resume_from_checkpoint=True)


def test_a_checkpoint_loads_as_a_model(tmp_path):
    trainer = reward_trainer(tmp_path, **EVERY_STEP)
    trainer.train()
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "checkpoint-6")
    assert same(dict(loaded.state_dict()), dict(trainer.model.state_dict()))


@pytest.mark.parametrize("stage", TRAINERS)
def test_a_signal_finishes_the_step_and_saves(tmp_path, stage):
    trainer = TRAINERS[stage](tmp_path, callbacks=[Signaller("substep_end", signal.SIGTERM)])
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 128 + signal.SIGTERM and trainer.state.global_step == 3
    check_checkpoint(tmp_path / "checkpoint-3", stage)


def train_for_ever(stage, run_dir):
    TRAINERS[stage](run_dir, max_steps=4000, lr_scheduler_type="constant", keep_last=2, **EVERY_STEP).train()


@pytest.mark.slow
@pytest.mark.parametrize("stage", TRAINERS)
def test_a_killed_run(tmp_path, stage):
    """What it leaves is resumed to the weights of a run that was not killed."""
    child = process.start(train_for_ever, stage, tmp_path / "run")
    while len(list(checkpoints(tmp_path / "run"))) < 2:
        time.sleep(0.01)
    child.kill()
    process.finish(child)
    step = max(step for step, _ in checkpoints(tmp_path / "run")) + 2
    options = {"max_steps": step, "lr_scheduler_type": "constant"}
    whole, resumed = (TRAINERS[stage](tmp_path / name, **options) for name in ("whole", "run"))
    whole.train()
    resumed.train(resume_from_checkpoint=True)
    assert same(dict(resumed.model.state_dict()), dict(whole.model.state_dict()))
