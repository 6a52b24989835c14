"""Whole runs on the simulated accelerator: the CPU's metrics, and no host wait where none is meant."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from fastrlhf.device import simulated
from tests.ppo.test_on_simulated_device import MEANT, Stepped
from tests.support import groups
from tests.support.tiny import tiny_llama_classifier, tiny_tokenizer

MEASURED = ("time/", "tokens_per_second", "step_time", "memory/")
STEERS = "the entropy that its bonus is steered by"


def on_device(config: type) -> type:
    """A configuration whose device is sim:0."""

    class Simulated(config):
        @property
        def device(self) -> torch.device:
            return torch.device("sim", 0) if super().device.type == "cpu" else super().device

    return Simulated


def run(kind, folder, monkeypatch, device=None, **options):
    """Train; returns the trainer."""
    trainer_class, config_class = groups.SIDES[kind]
    if device is None:
        trainer = groups.group_trainer(kind, folder, **options)
    else:
        sides = {kind: (type("SteppedTrainer", (Stepped, trainer_class), {}), on_device(config_class))}
        monkeypatch.setattr(groups, "SIDES", sides)
        trainer = groups.group_trainer(kind, folder, **options)
        trainer.device_books, trainer.waited = device, set()
    trainer.train()
    return trainer


def logged(trainer):
    return [
        {name: value for name, value in row.items() if not name.startswith(MEASURED)}
        for row in trainer.state.log_history
    ]


CASES = {
    "grpo": ("grpo", {}, set()),
    "reference": ("grpo", {"beta": 0.1, "num_iterations": 2}, set()),
    "sequences": ("grpo", {"importance_sampling_level": "sequence", "beta": 0.1, "loss_type": "grpo"}, set()),
    "high entropy": ("grpo", {"top_entropy_quantile": 0.5, "mask_truncated_completions": True}, set()),
    "steered": ("grpo", {"use_adaptive_entropy": True, "entropy_coef": 0.1, "entropy_target": 4.0}, {STEERS}),
    "moving reference": ("grpo", {"beta": 0.1, "sync_ref_model": True, "ref_model_sync_steps": 2}, set()),
    "skipped groups": ("grpo", {"skip_flat_groups": True, "scale_rewards": "batch"}, set()),
    "decoupled": ("grpo", {"multi_objective_aggregation": "normalize_then_sum"}, set()),
    "rloo": ("rloo", {"normalize_advantages": True}, set()),
    "rloo, lora": (
        "rloo",
        {"peft_config": lambda: LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")},
        set(),
    ),
    "reward model": (
        "rloo",
        {"reward_funcs": tiny_llama_classifier, "reward_processing_classes": tiny_tokenizer},
        set(),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_learns_what_the_cpu_learns_and_waits_only_where_it_says(tmp_path, monkeypatch, case):
    kind, given, also = CASES[case]

    def options():
        made = {name: value() if callable(value) else value for name, value in given.items()}
        return {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4, **made}

    cpu = run(kind, tmp_path / "cpu", monkeypatch, **options())
    with simulated.registered() as device:
        sim = run(kind, tmp_path / "sim", monkeypatch, device, **options())
        assert {parameter.device.type for parameter in sim.model.parameters()} == {"sim"}
        assert device.launches.keys() >= {"linear_logprob", "ppo_loss", "group_advantages", "sample"}
        assert sim.waited <= MEANT | also
        assert sim.waited >= {"whether the update is finite"} | also
    assert len(logged(cpu)) == len(logged(sim)) == 4 // cpu.plan.updates
    for ours, theirs in zip(logged(sim), logged(cpu), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert (ours[name], value) == (None, None) or ours[name] == pytest.approx(
                value, rel=1e-4, abs=2e-6
            ), name
