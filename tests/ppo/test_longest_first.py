"""The longest sequences are tried before the first step, on a device that can run out of memory, and leave no trace."""

from __future__ import annotations

import pytest
import torch
from datasets import Dataset

from fastrlhf.device import simulated
from fastrlhf.ppo import longest, loop
from tests.ppo.test_on_simulated_device import SimulatedConfig, metrics
from tests.support import tiny

# One prompt is long, and comes last.
PROMPTS = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 15 + [[4] * 40]})


def trainer_on(folder, monkeypatch, **options):
    monkeypatch.setattr(tiny, "PPOConfig", SimulatedConfig)
    options = {"train_dataset": PROMPTS, "total_episodes": 16, "logging_steps": 1, **options}
    return tiny.tiny_trainer(folder, **options)


def peak_of_a_try(folder, monkeypatch, **options):
    with simulated.registered() as device:
        trainer = trainer_on(folder, monkeypatch, **options)
        before = device.live
        longest.try_longest(trainer)
        assert device.live == before
        return device.peak, before


def test_a_run_is_the_same_with_it_and_without(tmp_path, monkeypatch):
    logs, weights = [], []
    for tried in (True, False):
        with simulated.registered():
            torch.manual_seed(3)
            trainer = trainer_on(tmp_path / str(tried), monkeypatch, try_longest_first=tried)
            trainer.train()
            logs.append(metrics(trainer))
            weights.append([parameter.cpu().clone() for parameter in trainer.model.parameters()])
    assert str(logs[0]) == str(logs[1]) and len(logs[0]) > 1  # as text: NaN is NaN
    assert all(torch.equal(*pair) for pair in zip(*weights, strict=True))


def test_the_try_needs_what_the_run_can_need(tmp_path, monkeypatch):
    """A run in which every sequence is as long as can be has that peak, at its second update: the first one makes the
    optimizer's state."""
    tried, _ = peak_of_a_try(tmp_path, monkeypatch)
    long = {"train_dataset": Dataset.from_dict({"input_ids": [[4] * 40] * 16}), "stop_token": None}
    with simulated.registered() as device:
        trainer_on(tmp_path, monkeypatch, try_longest_first=False, **long).train()
        assert tried == pytest.approx(device.peak, rel=0.03)
    short = Dataset.from_dict({"input_ids": [[1, 2, 3]] * 16})
    assert peak_of_a_try(tmp_path, monkeypatch, train_dataset=short)[0] < 0.9 * tried


@pytest.mark.parametrize("phase", ["rollout", "evaluation", "update"])
def test_what_does_not_fit_is_said_before_the_first_step(tmp_path, monkeypatch, phase):
    def full(*_, **__):
        raise torch.OutOfMemoryError("no memory left")

    where = {
        "rollout": (longest, "run"),
        "evaluation": (loop, "evaluate"),
        "update": (loop, "add_gradients"),
    }
    monkeypatch.setattr(*where[phase], full)
    with simulated.registered():
        trainer = trainer_on(tmp_path, monkeypatch)
        with pytest.raises(
            torch.OutOfMemoryError, match=f"the {phase} does not fit .* 40 tokens .*=.*: lower "
        ) as error:
            trainer.train()
        assert longest.MENDS[phase] in str(error.value) and "no memory left" in str(error.value)
        assert trainer.state.global_step == 0
        assert all(parameter.grad is None for parameter in trainer.model.parameters())


def test_a_small_device_is_found_out_before_a_prompt_is_answered(tmp_path, monkeypatch):
    tried, models = peak_of_a_try(tmp_path, monkeypatch)
    asked = []
    with simulated.registered(capacity=(tried + models) // 2):
        trainer = trainer_on(tmp_path, monkeypatch, reward_model=lambda *texts: asked.append(texts))
        with pytest.raises(
            torch.OutOfMemoryError, match=r"does not fit for the longest .* sim:0 is out of memory"
        ):
            trainer.train()
    assert not asked


def test_a_cpu_tries_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(longest, "run", lambda *_, **__: 1 / 0)
    tiny.tiny_trainer(tmp_path, total_episodes=8).train()
