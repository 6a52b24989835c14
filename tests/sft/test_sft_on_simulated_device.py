"""A run on the simulated accelerator: the CPU's losses, and no host wait in a step's forward and backward."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig

from fastrlhf import SFTConfig, SFTTrainer
from fastrlhf.device import simulated
from fastrlhf.models.backbone import MASK_LOOKED_AT
from tests.support import sft
from tests.support.runs import metrics
from tests.support.tiny import WIDTH, tiny_gpt2, tiny_llama

TIMED = ("train_runtime", "eval_runtime")


class SimulatedDevice:
    """The part of a config whose device is sim:0."""

    @property
    def device(self) -> torch.device:
        return torch.device("sim", 0) if super().device.type == "cpu" else super().device


class StaysThere:
    """The part of a trainer whose models stay on sim:0."""

    def create_accelerator_and_postprocess(self):
        super().create_accelerator_and_postprocess()
        self.accelerator.device_placement = (
            False  # accelerate knows no such device, and would move the model back
        )


class SteppedRun(StaysThere):
    """The part of a trainer whose forward and backward are steps of the device, in which the host must not wait."""

    device_books = None

    def training_step(self, model, inputs, num_items_in_batch=None):
        inputs = self._prepare_inputs(inputs)
        before = self.device_books.waits.copy()
        with self.device_books.step():
            loss = super().training_step(model, inputs, num_items_in_batch)
        self.waited |= set(self.device_books.waits - before)
        return loss


class SimulatedConfig(SimulatedDevice, SFTConfig):
    """On sim:0."""


class SimulatedTrainer(StaysThere, SFTTrainer):
    """On sim:0."""


class SteppedTrainer(SteppedRun, SFTTrainer):
    """On sim:0, in steps."""


def run(folder, monkeypatch, device=None, **options):
    if device is None:
        trainer = sft.sft_trainer(folder, **options)
    else:
        monkeypatch.setattr(sft, "SFTConfig", SimulatedConfig)
        trainer = sft.sft_trainer(folder, trainer_class=SteppedTrainer, **options)
        trainer.device_books, trainer.waited = device, set()
    trainer.train()
    return trainer


CASES = {
    "plain": {},
    "padded": {"unpadded": False},
    "packed": {"packing": True, "max_length": 40},
    "transformers' own": {"accelerate": False},
    "gpt2, tied": {"model": lambda: tiny_gpt2(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)},
    "lora": {"peft_config": lambda: LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")},
    "checkpointed activations": {"gradient_checkpointing": True},
    "completions": {"train_dataset": sft.completions},
    "evaluated": {"eval_dataset": lambda: sft.texts(5), "eval_strategy": "steps", "eval_steps": 3},
}


@pytest.mark.parametrize("case", CASES)
def test_it_learns_what_the_cpu_learns_and_waits_only_where_it_says(tmp_path, monkeypatch, case):
    def options():
        return {name: value() if callable(value) else value for name, value in CASES[case].items()}

    cpu = run(tmp_path / "cpu", monkeypatch, **options())
    with simulated.registered() as device:
        trainer = run(tmp_path / "sim", monkeypatch, device, **options())
        assert {parameter.device.type for parameter in trainer.model.parameters()} == {"sim"}
        assert trainer.waited <= {MASK_LOOKED_AT}
        assert "linear_logprob" in device.launches
        ours = CASES[case].get("accelerate", True)
        assert ("attention" in device.launches) == ours, (
            "told the bounds, and not left to find them in a mask"
        )
    ours, theirs = (
        [row for row in metrics(one) if not row.keys() & set(TIMED[:1])] for one in (trainer, cpu)
    )
    assert len(ours) == len(theirs) >= 6
    for here, there in zip(ours, theirs, strict=True):
        for name, value in there.items():
            if not name.endswith(("per_second", "runtime")):
                assert here[name] == pytest.approx(value, rel=1e-4, abs=2e-6), name


def test_a_larger_vocabulary_takes_no_memory_for_whole_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(sft, "SFTConfig", SimulatedConfig)
    peaks = []
    for vocabulary in (64, 4096):
        with simulated.registered() as device:
            trainer = sft.sft_trainer(
                tmp_path,
                trainer_class=SimulatedTrainer,
                model=tiny_llama(vocab_size=vocabulary),
                train_dataset=[{"text": "t1 t2 " * 30}] * 24,
            )
            weights = sum(p.numel() * 4 for p in trainer.model.parameters())
            trainer.train()
            peaks.append(device.peak - weights)
    # embedding and head grow: a gradient, two moments and what a step of the optimizer needs besides
    assert peaks[1] - peaks[0] < 6 * 2 * (4096 - 64) * WIDTH * 4
