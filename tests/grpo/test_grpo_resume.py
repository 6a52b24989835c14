"""A run resumed by new objects computes what the uninterrupted run would have, to the bit."""

from __future__ import annotations

import os
import random
import signal

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import set_seed

from fastrlhf.ppo.rewards import RewardError
from fastrlhf.trainers.checkpoint import CheckpointError, check_checkpoint
from tests.support import process
from tests.support.groups import group_rows, group_trainer, small_words
from tests.support.runs import metrics, same, snapshot
from tests.support.tiny import tiny_llama

SAVING = {"save_strategy": "steps", "save_steps": 1}
CLOCKED = ("step_time",)


def logged(trainer):
    """The log without what a clock says."""
    return [{name: value for name, value in row.items() if name not in CLOCKED} for row in metrics(trainer)]


def drawing(completions, **kwargs):
    """A reward with noise of global generators."""
    return [score + 0.1 * random.random() + 0.1 * torch.rand(()).item() for score in small_words(completions)]


def lora(**options):
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options})


def adapted():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return get_peft_model(tiny_llama(), lora(init_lora_weights=False))


CASES = {
    "plain": dict,
    "noise": lambda: {"reward_funcs": drawing},
    "reference": lambda: {"beta": 0.1},
    "moving reference": lambda: {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2},
    "adapter": lambda: {"beta": 0.1, "peft_config": lora()},
    "an adapter that was there": lambda: {"beta": 0.1, "model": adapted()},
    "micro-batches": lambda: {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "schedule": lambda: {"lr_scheduler_type": "cosine", "warmup_steps": 1},
    "rare logs": lambda: {"logging_steps": 3},
    "wraps": lambda: {"train_dataset": group_rows(5), "shuffle_dataset": False},
    "filters": lambda: {"top_k": 9, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2},
}


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
@pytest.mark.parametrize("case", CASES)
def test_resume_at_every_step(tmp_path, kind, case):
    whole = group_trainer(kind, tmp_path, **CASES[case](), **SAVING)
    whole.train()
    assert whole.state.global_step == 4
    for step in range(1, 5):
        resumed = group_trainer(kind, tmp_path, **CASES[case]())
        set_seed(step)  # a new process need not stand where the old one did
        resumed.train(resume_from_checkpoint=tmp_path / f"checkpoint-{step}")
        assert same(logged(resumed), logged(whole))
        assert same(snapshot(resumed), snapshot(whole))
        assert same(vars(resumed.state)["num_input_tokens_seen"], whole.state.num_input_tokens_seen)
        if whole.ref_model is not None:
            assert same(dict(resumed.ref_model.state_dict()), dict(whole.ref_model.state_dict()))


def test_several_updates_a_rollout(tmp_path):
    """Checkpoints are at the ends of rollouts, and what is due within one is done there."""
    options = {"num_iterations": 3, "max_steps": 7, "logging_steps": 2, "use_adaptive_entropy": True}
    options |= {"entropy_target": 4.0, "lr_scheduler_type": "linear"}
    whole = group_trainer("grpo", tmp_path, **options, save_strategy="steps", save_steps=2)
    whole.train()
    assert [row["step"] for row in whole.state.log_history] == [3, 6, 7]
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-3",
        "checkpoint-6",
        "checkpoint-7",
    ]
    resumed = group_trainer("grpo", tmp_path, **options)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-3")
    assert same(logged(resumed), logged(whole))
    assert same(snapshot(resumed), snapshot(whole))
    assert resumed.entropy.coef == whole.entropy.coef != 0


def test_of_another_shape(tmp_path):
    group_trainer("grpo", tmp_path, **SAVING).train()
    with pytest.raises(CheckpointError, match="num_generations=4, and this run has num_generations=2"):
        group_trainer("grpo", tmp_path, num_generations=2).train(resume_from_checkpoint=True)


def test_a_signal_finishes_the_rollout(tmp_path):
    whole = group_trainer("grpo", tmp_path / "whole")
    whole.train()
    trainer = group_trainer("grpo", tmp_path)
    trainer.phase_listeners.append(
        lambda phase: (
            phase == "update" and trainer.state.global_step == 1 and os.kill(os.getpid(), signal.SIGTERM)
        )
    )
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 128 + signal.SIGTERM
    check_checkpoint(tmp_path / "checkpoint-2")
    resumed = group_trainer("grpo", tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert same(snapshot(resumed), snapshot(whole))


def train_until_killed(folder, phase):
    """Dies by SIGKILL when a phase begins in the third step."""
    trainer = group_trainer("rloo", folder, **SAVING)
    trainer.phase_listeners.append(
        lambda name: name == phase and trainer.state.global_step == 2 and os.kill(os.getpid(), signal.SIGKILL)
    )
    trainer.train()


@pytest.mark.parametrize("phase", ["rollout", "update"])
def test_killed_and_resumed(tmp_path, phase):
    whole = group_trainer("rloo", tmp_path / "whole")
    whole.train()
    assert process.run(train_until_killed, tmp_path / "run", phase) == -signal.SIGKILL
    resumed = group_trainer("rloo", tmp_path / "run")
    resumed.train(resume_from_checkpoint=True)
    assert same(logged(resumed), logged(whole))
    assert same(snapshot(resumed), snapshot(whole))


def test_a_reward_that_fails_leaves_a_checkpoint(tmp_path):
    calls = []

    def fails(completions, **kwargs):
        calls.append(1)
        if len(calls) > 2:
            raise OSError("the service is away")
        return small_words(completions)

    whole = group_trainer("grpo", tmp_path / "whole")
    whole.train()
    trainer = group_trainer("grpo", tmp_path, reward_funcs=fails)
    with pytest.raises(
        RewardError, match="after step 2: reward fails raised OSError: the service is away, twice"
    ):
        trainer.train()
    resumed = group_trainer("grpo", tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert same(snapshot(resumed), snapshot(whole))
