"""Runs on preferences on the simulated accelerator: the CPU's losses, and no host wait in a step."""

from __future__ import annotations

import pytest
from peft import LoraConfig

from fastrlhf import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from fastrlhf.device import simulated
from fastrlhf.models.backbone import MASK_LOOKED_AT
from tests.sft.test_sft_on_simulated_device import SimulatedDevice, SteppedRun
from tests.support.preferences import TRAINERS, pairs
from tests.support.runs import metrics
from tests.support.tiny import tiny_gpt2_classifier


class SimulatedDPOConfig(SimulatedDevice, DPOConfig):
    """On sim:0."""


class SimulatedRewardConfig(SimulatedDevice, RewardConfig):
    """On sim:0."""


class SteppedDPO(SteppedRun, DPOTrainer):
    """Forward and backward are steps of the device."""


class SteppedReward(SteppedRun, RewardTrainer):
    """Forward and backward are steps of the device."""


STAGES = {"dpo": (SteppedDPO, SimulatedDPOConfig), "reward": (SteppedReward, SimulatedRewardConfig)}
EVALUATED = {"eval_dataset": lambda: pairs(5, 1), "eval_strategy": "steps", "eval_steps": 3}
CASES = {
    "dpo": ("dpo", EVALUATED),
    "dpo, padded": ("dpo", {"unpadded": False}),
    "dpo, precomputed": ("dpo", EVALUATED | {"precompute_ref_log_probs": True}),
    "dpo, adapter": ("dpo", {"peft_config": lambda: LoraConfig(r=2, target_modules=["q_proj", "up_proj"])}),
    "dpo, transformers' own": ("dpo", {"accelerate": False}),
    "reward": ("reward", EVALUATED),
    "reward, padded": ("reward", {"unpadded": False}),
    "reward, margin and centre": (
        "reward",
        {"train_dataset": lambda: pairs(margin=0.3), "center_rewards_coefficient": 0.1},
    ),
    "reward, gpt2, checkpointed": (
        "reward",
        {"model": tiny_gpt2_classifier, "gradient_checkpointing": True},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_it_learns_what_the_cpu_learns_and_waits_only_where_it_says(tmp_path, case):
    stage, given = CASES[case]

    def options():
        return {name: value() if callable(value) else value for name, value in given.items()}

    cpu = TRAINERS[stage](tmp_path / "cpu", **options())
    cpu.train()
    trainer_class, config = STAGES[stage]
    with simulated.registered() as device:
        trainer = TRAINERS[stage](
            tmp_path / "sim", trainer_class=trainer_class, config_class=config, **options()
        )
        trainer.device_books, trainer.waited = device, set()
        trainer.train()
        assert {parameter.device.type for parameter in trainer.model.parameters()} == {"sim"}
        assert trainer.waited <= {MASK_LOOKED_AT}
    ours, theirs = ([row for row in metrics(one) if "train_runtime" not in row] for one in (trainer, cpu))
    assert len(ours) == len(theirs) >= 6
    for here, there in zip(ours, theirs, strict=True):
        for name, value in there.items():
            if not name.endswith(("per_second", "runtime", "accuracies")):
                assert here[name] == pytest.approx(value, rel=1e-4, abs=2e-6), name
