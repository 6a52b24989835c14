"""A run resumed by new objects computes what the uninterrupted one would have, to the bit; kills and signals too."""

from __future__ import annotations

import copy
import os
import random
import signal
import time

import pytest
import torch
from peft import LoraConfig
from transformers import AutoModelForCausalLM, TrainerCallback

from fastrlhf.trainers import saving
from fastrlhf.trainers.checkpoint import CheckpointError, check_checkpoint, checkpoints, find_checkpoint
from tests.support import process
from tests.support.runs import metrics, same
from tests.support.sft import losses, sft_trainer, texts
from tests.support.tiny import tiny_gpt2, tiny_trainer

EVERY_STEP = {"save_strategy": "steps", "save_steps": 1}
TIMED = ("train_runtime", "train_loss", "eval_runtime")


class StopAt(TrainerCallback):
    """Ends the run after a step, as a full disk or a lost machine would, without a last save."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step >= self.step


def snapshot(trainer):
    return copy.deepcopy(
        {
            "model": dict(trainer.model.state_dict()),
            "optimizer": trainer.optimizer.state_dict(),
            "scheduler": trainer.lr_scheduler.state_dict(),
        }
    )


def logged(trainer):
    """The logged rows, without what a clock says and what is said once at the end of each run."""
    rows = [row for row in metrics(trainer) if not row.keys() & set(TIMED)]
    return [{name: row[name] for name in row if name != "total_flos"} for row in rows]


CASES = {
    "plain": {},
    "over epochs": {"train_dataset": lambda: texts(10)},
    "accumulation that leaves a rest": {"train_dataset": lambda: texts(11), "gradient_accumulation_steps": 3},
    "packed and shuffled": {"packing": True, "max_length": 24, "shuffle_dataset": True},
    "dropout": {"model": tiny_gpt2, "accelerate": False},
    "adapter": {"peft_config": lambda: LoraConfig(r=2, target_modules="all-linear", lora_dropout=0.1)},
    "checkpointed activations": {"gradient_checkpointing": True},
    "another optimizer": {"optim": "sgd", "optim_args": "momentum=0.9"},
}


@pytest.mark.parametrize(("case", "stop"), [("plain", 1), ("plain", 5), *((case, 3) for case in CASES)])
def test_it_goes_on_to_the_bit(tmp_path, case, stop):
    def options():
        return EVERY_STEP | {
            name: value() if callable(value) else value for name, value in CASES[case].items()
        }

    whole = sft_trainer(tmp_path / "whole", **options())
    whole.train()
    cut = sft_trainer(tmp_path / "cut", callbacks=[StopAt(stop)], **options())
    cut.train()
    assert cut.state.global_step == stop

    resumed = sft_trainer(tmp_path / "cut", **options())
    resumed.train(resume_from_checkpoint=True)
    assert len(losses(resumed)) == 6
    assert same(logged(resumed), logged(whole))
    assert same(snapshot(resumed), snapshot(whole))


def test_from_a_folder_that_is_named(tmp_path):
    whole = sft_trainer(tmp_path, **EVERY_STEP)
    whole.train()
    resumed = sft_trainer(tmp_path / "other", **EVERY_STEP)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert same(logged(resumed), logged(whole))


def test_a_checkpoint_loads_as_a_model(tmp_path):
    trainer = sft_trainer(tmp_path, **EVERY_STEP)
    trainer.train()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-6")
    assert same(dict(loaded.state_dict()), dict(trainer.model.state_dict()))


def test_the_last_ones_stay_and_the_best(tmp_path):
    trainer = sft_trainer(
        tmp_path,
        eval_dataset=texts(),
        learning_rate=1e-2,
        eval_strategy="steps",
        eval_steps=1,
        metric_for_best_model="loss",
        greater_is_better=True,  # the first is the best
        load_best_model_at_end=True,
        keep_last=2,
        **EVERY_STEP,
    )
    trainer.train()
    assert trainer.state.best_global_step == 1
    assert [step for step, _ in checkpoints(tmp_path)] == [1, 5, 6]
    best = AutoModelForCausalLM.from_pretrained(tmp_path / "checkpoint-1")
    assert same(dict(best.state_dict()), dict(trainer.model.state_dict()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 7}, r"was written with seed=42, and this run has seed=7"),
        ({"per_device_train_batch_size": 1}, r"per_device_train_batch_size=2, and this run has .*=1"),
        ({"train_dataset": texts(5)}, r"rows=24, and this run has rows=5"),
    ],
)
def test_a_checkpoint_of_another_run(tmp_path, changes, message):
    sft_trainer(tmp_path, callbacks=[StopAt(1)], **EVERY_STEP).train()
    with pytest.raises(CheckpointError, match=message):
        sft_trainer(tmp_path, **(EVERY_STEP | changes)).train(resume_from_checkpoint=True)


def test_checkpoints_that_cannot_be_resumed_from(tmp_path):
    with pytest.raises(CheckpointError, match="no whole checkpoint in"):
        sft_trainer(tmp_path).train(resume_from_checkpoint=True)
    sft_trainer(tmp_path, callbacks=[StopAt(2)], **EVERY_STEP).train()
    state = tmp_path / "checkpoint-2" / "trainer_state.json"
    state.write_text(state.read_text() + " ")
    resumed = sft_trainer(tmp_path, **EVERY_STEP)
    with pytest.raises(CheckpointError, match=r"trainer_state\.json is cut short or altered"):
        resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    resumed.train(resume_from_checkpoint=True)  # from the one before
    assert len(losses(resumed)) == 6

    bare = sft_trainer(tmp_path / "bare", save_only_model=True, **EVERY_STEP)
    bare.train()
    with pytest.raises(CheckpointError, match="save_only_model=True: it cannot be resumed from"):
        sft_trainer(tmp_path / "bare").train(resume_from_checkpoint=True)


def test_another_trainers_checkpoint(tmp_path):
    tiny_trainer(tmp_path, save_strategy="steps", save_steps=1, total_episodes=8).train()
    with pytest.raises(CheckpointError, match=r"is fastrlhf-ppo version 1, expected fastrlhf-sft"):
        sft_trainer(tmp_path).train(resume_from_checkpoint=True)


def failing(times):
    """A `save_checkpoint` that fails so many times."""
    left = iter(range(times))
    real = saving.save_checkpoint

    def save(*arguments, **options):
        if next(left, None) is not None:
            raise CheckpointError("no space")
        return real(*arguments, **options)

    return save


def test_a_save_that_fails_is_tried_again(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "save_checkpoint", failing(1))
    trainer = sft_trainer(tmp_path, save_strategy="steps", save_steps=2)
    with pytest.warns(UserWarning, match="no space; training goes on, and the next step tries again"):
        trainer.train()
    assert [step for step, _ in checkpoints(tmp_path)] == [3, 4, 6]


def test_a_last_save_that_fails_raises(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "save_checkpoint", failing(9))
    trainer = sft_trainer(tmp_path, save_strategy="steps", save_steps=6)
    with pytest.warns(UserWarning, match="no space"), pytest.raises(CheckpointError, match="no space"):
        trainer.train()


class Signaller(TrainerCallback):
    """Sends a signal at an event of the third step."""

    def __init__(self, event, number, times=1):
        setattr(self, f"on_{event}", self._send)
        self.number, self.times = number, times

    def _send(self, args, state, control, **_):
        if state.global_step == 2:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)
                time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("event", ["step_begin", "substep_end", "pre_optimizer_step", "log", "save"])
def test_a_signal_finishes_the_step_and_saves(tmp_path, event, number, capsys):
    whole = sft_trainer(tmp_path / "whole", **EVERY_STEP)
    whole.train()
    every = EVERY_STEP if event == "save" else {"save_strategy": "steps", "save_steps": 100}
    trainer = sft_trainer(tmp_path / "run", callbacks=[Signaller(event, number)], **every)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as caught:
        trainer.train()
    assert caught.value.code == 128 + number and signal.getsignal(number) == before
    assert "finishing this step, then a checkpoint" in capsys.readouterr().err
    assert trainer.state.global_step == 3
    check_checkpoint(tmp_path / "run" / "checkpoint-3", "sft")
    resumed = sft_trainer(tmp_path / "run", **EVERY_STEP)
    resumed.train(resume_from_checkpoint=True)
    assert same(snapshot(resumed), snapshot(whole))


def test_a_signal_after_the_last_step_saves_it(tmp_path):
    class Late(TrainerCallback):
        def on_train_end(self, args, state, control, **_):
            os.kill(os.getpid(), signal.SIGTERM)

    trainer = sft_trainer(tmp_path, callbacks=[Late()])
    with pytest.raises(SystemExit):
        trainer.train()
    check_checkpoint(tmp_path / "checkpoint-6", "sft")


def train_for_ever(run_dir):
    sft_trainer(run_dir, max_steps=4000, lr_scheduler_type="constant", keep_last=2, **EVERY_STEP).train()


def train_and_signal(run_dir):
    sft_trainer(run_dir, callbacks=[Signaller("step_begin", signal.SIGTERM, times=2)], **EVERY_STEP).train()


def test_a_second_signal_ends_the_process_at_once(tmp_path):
    assert process.run(train_and_signal, tmp_path / "run", stderr=tmp_path / "err") == -signal.SIGTERM
    assert "Traceback" not in (tmp_path / "err").read_text()
    assert [step for step, _ in checkpoints(tmp_path / "run")] == [1, 2]


@pytest.mark.slow
def test_a_run_killed_at_random(tmp_path):
    """What a killed run leaves is resumed to the same weights, wherever the kill came."""
    options = {"max_steps": 60, "lr_scheduler_type": "constant"}
    whole = sft_trainer(tmp_path / "whole", **options)
    whole.train()
    resumed_runs = 0
    for seed in range(6):
        run_dir = tmp_path / str(seed)
        child = process.start(train_for_ever, run_dir)
        while not list(checkpoints(run_dir)):
            time.sleep(0.01)
        time.sleep(random.Random(seed).uniform(0, 0.4))
        child.kill()
        process.finish(child)
        last = find_checkpoint(run_dir, True, "sft")
        if int(last.name.partition("-")[2]) > 50:
            continue
        resumed_runs += 1
        resumed = sft_trainer(run_dir, **options)
        resumed.train(resume_from_checkpoint=True)
        for name, weight in whole.model.state_dict().items():
            assert torch.equal(resumed.model.state_dict()[name], weight), (seed, name)
    assert resumed_runs
