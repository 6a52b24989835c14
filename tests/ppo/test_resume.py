"""A run resumed by new objects computes what the uninterrupted run would have, to the bit."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.utils.data import DataLoader
from transformers import TrainerCallback, set_seed

from fastrlhf import PPOTrainer
from tests.support.runs import metrics, same, snapshot
from tests.support.tiny import (
    tiny_gpt2,
    tiny_gpt2_classifier,
    tiny_llama,
    tiny_llama_classifier,
    tiny_prompts,
    tiny_reward,
    tiny_trainer,
)

STEPS = 4


def lora(**options):
    return LoraConfig(**{"r": 2, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM", **options})


def two_adapters():
    """A policy whose reference is another adapter of the same base."""
    model = get_peft_model(tiny_llama(), lora(init_lora_weights=False), adapter_name="policy")
    model.add_adapter("reference", lora(init_lora_weights=False))
    with torch.no_grad():
        for seed, (name, parameter) in enumerate(model.named_parameters()):
            if "lora_" in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
    return model


def drawing_reward(prompts, completions):
    """Noise of all three global generators, and of a torch generator's share that other code could take."""
    noise = [random.random() + np.random.rand() + torch.rand(()).item() for _ in completions]
    return [score + 0.1 * some for score, some in zip(tiny_reward(prompts, completions), noise, strict=True)]


class DrawingCallback(TrainerCallback):
    """Draws from the global generators wherever it is called."""

    def __init__(self):
        for event in ("init_end", "train_begin", "step_begin", "step_end", "save", "log", "evaluate"):
            setattr(self, f"on_{event}", self._draw)

    @staticmethod
    def _draw(*_, **__):
        random.random(), np.random.rand(), torch.rand(3)


class ShufflingLoader(PPOTrainer):
    """A data loader of the user's own that shuffles by the global generator, and is shorter than the run."""

    def get_train_dataloader(self):
        return DataLoader(
            self.train_dataset, batch_size=8, shuffle=True, drop_last=True, collate_fn=self.data_collator
        )


class GeneratorLoader(PPOTrainer):
    """The same with a generator of its own."""

    def get_train_dataloader(self):
        return DataLoader(
            self.train_dataset,
            batch_size=8,
            shuffle=True,
            drop_last=True,
            collate_fn=self.data_collator,
            generator=torch.Generator().manual_seed(5),
        )


class DrawingCollator:
    """Drops a random first token of a prompt, as an augmentation might."""

    def __call__(self, rows):
        width = max(len(row["input_ids"]) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        mask = torch.zeros(len(rows), width, dtype=torch.long)
        for row, tokens in enumerate(row["input_ids"] for row in rows):
            kept = tokens[1:] if random.random() < 0.5 else tokens
            ids[row, width - len(kept) :] = torch.tensor(kept)
            mask[row, width - len(kept) :] = 1
        return {"input_ids": ids, "attention_mask": mask}


CASES = {
    "separate-critic": lambda: {"value_model": tiny_llama_classifier()},
    "gpt2": lambda: {"model": tiny_gpt2(), "value_model": tiny_gpt2_classifier()},
    "separate-reference": lambda: {"ref_model": tiny_llama(seed=3)},
    "shared-base": lambda: {"detach_value": False},
    "lora": lambda: {"peft_config": lora()},
    "lora-with-dropout": lambda: {"peft_config": lora(lora_dropout=0.5)},
    "lora-separate-critic": lambda: {"peft_config": lora(), "value_model": tiny_llama_classifier()},
    "named-adapters": lambda: {
        "model": two_adapters(),
        "model_adapter_name": "policy",
        "ref_adapter_name": "reference",
    },
    "minibatches": lambda: {"num_mini_batches": 2, "num_ppo_epochs": 2},
    "micro-batches": lambda: {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    "adaptive-kl": lambda: {"adaptive_kl_target": 0.01, "adaptive_kl_horizon": 50, "learning_rate": 1e-2},
    "schedule": lambda: {"lr_scheduler_type": "cosine", "warmup_steps": 2},
    "epoch-wraps": lambda: {"train_dataset": tiny_prompts(19)},
    "shuffling-loader": lambda: {"trainer_class": ShufflingLoader, "train_dataset": tiny_prompts(19)},
    "generator-loader": lambda: {"trainer_class": GeneratorLoader, "train_dataset": tiny_prompts(19)},
    "drawing-collator": lambda: {"data_collator": DrawingCollator(), "train_dataset": tiny_prompts(19)},
    "drawing-reward": lambda: {"reward_model": drawing_reward},
    "drawing-evaluation": lambda: {
        "reward_model": drawing_reward,
        "eval_dataset": tiny_prompts(3, seed=9),
        "num_sample_generations": STEPS,
    },
    "drawing-callback": lambda: {"reward_model": drawing_reward, "callbacks": [DrawingCallback()]},
    "data-seed": lambda: {"data_seed": 3},
    "reward-model": lambda: {"reward_model": [tiny_llama_classifier(seed=5), drawing_reward]},
    "packing": lambda: {"packing": True},
    "gradient-checkpointing": lambda: {"gradient_checkpointing": True},
    "int8-rollouts": lambda: {"rollout_weights": "int8"},
    "int8-rollouts-lora": lambda: {"rollout_weights": "int8", "peft_config": lora()},
}


@pytest.mark.parametrize("case", CASES)
def test_resume_at_every_step(tmp_path, case):
    saving = {"save_strategy": "steps", "save_steps": 1}
    whole = tiny_trainer(tmp_path, **CASES[case](), **saving)
    whole.train()
    assert [row["step"] for row in whole.state.log_history] == [1, 2, 3, 4]
    for step in range(1, STEPS + 1):
        resumed = tiny_trainer(tmp_path, **CASES[case](), save_strategy="no")
        set_seed(step)  # a new process need not stand where the old one did
        resumed.train(resume_from_checkpoint=tmp_path / f"checkpoint-{step}")
        assert same(metrics(resumed), metrics(whole))
        assert same(snapshot(resumed), snapshot(whole))
        assert resumed.state.global_step == STEPS
        assert resumed.state.episode == whole.state.episode
        assert resumed.kl_controller.kl_coef == whole.kl_controller.kl_coef


def test_saving_does_not_change_a_run(tmp_path):
    options = {"reward_model": drawing_reward, "num_mini_batches": 2}
    plain = tiny_trainer(tmp_path / "plain", **options)
    saving = tiny_trainer(tmp_path / "saving", **options, save_strategy="steps", save_steps=1)
    for trainer in (plain, saving):
        set_seed(3)
        trainer.train()
    assert same(metrics(plain), metrics(saving))
    assert same(snapshot(plain), snapshot(saving))


def test_resume_true_takes_the_newest(tmp_path):
    options = {"save_strategy": "steps", "save_steps": 1}
    whole = tiny_trainer(tmp_path, **options)
    whole.train()
    resumed = tiny_trainer(tmp_path, **options)
    calls = []
    resumed.phase_listeners.append(calls.append)
    resumed.train(resume_from_checkpoint=True)
    assert calls == []
    assert same(snapshot(resumed), snapshot(whole))


def test_resume_through_several_checkpoints(tmp_path):
    """Each step in a trainer of its own: nothing that a step needs is left out of a checkpoint."""
    options = {"num_mini_batches": 2, "lr_scheduler_type": "linear", "reward_model": drawing_reward}
    whole = tiny_trainer(tmp_path / "whole", **options)
    whole.train()

    class StopAfterOne(TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_save = control.should_training_stop = True

    for _ in range(STEPS):
        part = tiny_trainer(tmp_path / "parts", callbacks=[StopAfterOne()], **options)
        part.train(
            resume_from_checkpoint=(tmp_path / "parts").is_dir() and any((tmp_path / "parts").iterdir())
        )
    assert same(metrics(part), metrics(whole))
    assert same(snapshot(part), snapshot(whole))


def test_resumed_in_the_same_trainer(tmp_path):
    """The trainer that ran to the end goes back to a checkpoint as a new one would."""
    options = {"save_strategy": "steps", "save_steps": 1, "adaptive_kl_target": 0.01}
    trainer = tiny_trainer(tmp_path, **options)
    trainer.train()
    before, rows = snapshot(trainer), metrics(trainer)
    trainer.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert same(metrics(trainer), rows)
    assert same(snapshot(trainer), before)


def test_a_longer_run_goes_on_from_the_end(tmp_path):
    tiny_trainer(tmp_path, save_strategy="steps", save_steps=4).train()
    longer = tiny_trainer(tmp_path, total_episodes=48)
    longer.train(resume_from_checkpoint=True)
    assert [row["step"] for row in longer.state.log_history] == [1, 2, 3, 4, 5, 6]


def test_skipped_updates_are_counted_on(tmp_path):
    trainer = tiny_trainer(tmp_path, save_strategy="steps", save_steps=1)
    trainer.guard.skipped = 5
    trainer.train()
    resumed = tiny_trainer(tmp_path)
    resumed.train(resume_from_checkpoint=tmp_path / "checkpoint-2")
    assert [row["train/skipped_updates"] for row in metrics(resumed)] == [5] * 4
