"""A whole PPO run on the simulated accelerator: the CPU's metrics, and no host wait where none is meant."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from peft import LoraConfig

from fastrlhf import PPOConfig, PPOTrainer
from fastrlhf.device import simulated
from fastrlhf.models.backbone import MASK_LOOKED_AT
from tests.support import tiny

# What the host still waits for in evaluation and update; sampling and rewards wait by their nature.
MEANT = {
    MASK_LOOKED_AT,
    "how many tokens a micro-batch has",
    "how many tokens the responses have",
    "how wide a micro-batch is",
    "which rows a micro-batch has",
    "whether the update is finite",
}
OURS = {"linear_logprob", "linear_logprob_backward", "ppo_loss", "gae", "sample"}
MEASURED = ("eps", "time/", "tokens_per_second", "elapsed_s", "memory/")


class SimulatedConfig(PPOConfig):
    """A config whose device is sim:0."""

    @property
    def device(self) -> torch.device:
        return torch.device("sim", 0) if super().device.type == "cpu" else super().device


class Stepped:
    """A trainer's evaluation and update are steps of the device, in which the host must not wait."""

    device_books = None

    def enter_phase(self, name):
        super().enter_phase(name)
        self._leave()
        if name in ("evaluate", "update"):
            self._step = ExitStack()
            self._step.enter_context(self.device_books.step())
            self.waits_before = self.device_books.waits.copy()

    def end_step(self, *args):
        self._leave()
        return super().end_step(*args)

    def _leave(self):
        if step := vars(self).pop("_step", None):
            step.close()
            self.waited |= set(self.device_books.waits - self.waits_before)


class SteppedTrainer(Stepped, PPOTrainer):
    """PPO's."""


def run(folder, monkeypatch, device=None, **options):
    """Train; returns the log, and on a device what the host waited for inside steps."""
    options = {"logging_steps": 1, "num_ppo_epochs": 2, "gradient_accumulation_steps": 2, **options}
    torch.manual_seed(0)  # an adapter begins at random
    if device is None:
        trainer = tiny.tiny_trainer(folder, **options)
    else:
        monkeypatch.setattr(tiny, "PPOConfig", SimulatedConfig)
        trainer = tiny.tiny_trainer(folder, trainer_class=SteppedTrainer, **options)
        trainer.device_books, trainer.waited = device, set()
    trainer.train()
    return trainer


def metrics(trainer) -> list[dict[str, float]]:
    return [
        {name: value for name, value in row.items() if not name.startswith(MEASURED)}
        for row in trainer.state.log_history
    ]


CASES = {
    "one base": {},
    "two models": {"value_model": tiny.tiny_llama_classifier, "reward_model": tiny.tiny_llama_classifier},
    "padded": {"packing": False},
    "transformers' own": {"accelerate": False},
    "gpt2, tied": {"model": tiny.tiny_gpt2},
    "lora": {"peft_config": lambda: LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")},
    "checkpointed activations": {"gradient_checkpointing": True},
    "top layer": {"trainable_layers": 1},
    "top layer, recomputed": {"trainable_layers": 1, "frozen_states_bytes": 0},
}


@pytest.mark.parametrize("case", CASES)
def test_it_learns_what_the_cpu_learns_and_waits_only_where_it_says(tmp_path, monkeypatch, case):
    def options():
        return {name: value() if callable(value) else value for name, value in CASES[case].items()}

    cpu = run(tmp_path / "cpu", monkeypatch, **options())
    with simulated.registered() as device:
        sim = run(tmp_path / "sim", monkeypatch, device, **options())
        assert {parameter.device.type for parameter in sim.model.parameters()} == {"sim"}
        # a frozen head's forward leaves its backward nothing to compute
        frozen_head = case == "lora" or case.startswith("top layer")
        assert device.launches.keys() >= OURS - ({"linear_logprob_backward"} if frozen_head else set())
        assert sim.waited <= MEANT
        assert sim.waited >= {"how many tokens the responses have", "whether the update is finite"}
    assert len(metrics(cpu)) == len(metrics(sim)) > 1
    for ours, theirs in zip(metrics(sim), metrics(cpu), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-4, abs=2e-6, nan_ok=True), name


def test_a_wait_that_is_not_meant_stops_the_step(tmp_path, monkeypatch):
    class Waits(SteppedTrainer):
        def minibatches(self, epoch):
            for rows in super().minibatches(epoch):
                rows.tolist()
                yield rows

    with simulated.registered() as device:
        monkeypatch.setattr(tiny, "PPOConfig", SimulatedConfig)
        trainer = tiny.tiny_trainer(tmp_path, trainer_class=Waits)
        trainer.device_books, trainer.waited = device, set()
        with pytest.raises(
            RuntimeError, match="a copy to the host makes the host wait for sim:0 inside a step"
        ):
            trainer.train()


def test_the_peak_is_shown_with_who_holds_it(tmp_path, monkeypatch):
    with simulated.registered() as device:
        with device.label("models"):
            monkeypatch.setattr(tiny, "PPOConfig", SimulatedConfig)
            trainer = tiny.tiny_trainer(tmp_path)
        weights = sum(
            p.numel() * 4 for model in (trainer.model, trainer.ref_model) for p in model.parameters()
        )
        assert weights <= device.holders["models"] <= weights + 1000, "and rotary tables"
        trainer.train()
        moments = 2 * sum(p.numel() * 4 for p in trainer.model.parameters() if p.requires_grad)
        assert device.at_peak["models"] == device.holders["models"]
        assert device.peak > weights + moments
        peak = device.peak

    with simulated.registered(capacity=peak - 1):
        trainer = tiny.tiny_trainer(tmp_path)
        with pytest.raises(
            torch.OutOfMemoryError, match=r"sim:0 is out of memory: [\w:]+ .* asks for .* Held: "
        ):
            trainer.train()
    with simulated.registered(capacity=peak):
        tiny.tiny_trainer(tmp_path).train()


def test_a_larger_vocabulary_takes_no_memory_for_whole_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(tiny, "PPOConfig", SimulatedConfig)
    peaks = []
    for vocabulary in (64, 4096):
        with simulated.registered() as device:
            trainer = tiny.tiny_trainer(
                tmp_path, model=tiny.tiny_llama(vocab_size=vocabulary), total_episodes=8
            )
            weights = sum(p.numel() * 4 for m in (trainer.model, trainer.ref_model) for p in m.parameters())
            trainer.train()
            peaks.append(device.peak - weights)
    # the embedding and the head grow: gradient, two moments and what a step of the optimizer needs besides
    grown = 2 * (4096 - 64) * tiny.WIDTH * 4
    assert peaks[1] - peaks[0] < 6 * grown
