"""Three rollouts of GRPO and RLOO from the same weights, prompts and completions: TRL 1.16's metrics and weights."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from group_cases import (
    CASES,
    ROLLOUTS,
    Case,
    adapter_config,
    default,
    load_policy,
    load_rewards,
    make_completions,
    make_prompts,
    move_reference,
)
from parity_cases import PAD, make_models
from safetensors.torch import load_file
from transformers import AutoTokenizer
from trl_process import child_environment, install_trl

from fastrlhf import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from fastrlhf.bench.peers import TRL_NOW

SIDES = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
RELATIVE, ABSOLUTE, WEIGHTS = 1e-4, 1e-6, 1e-5
NOT_COMPARED = {"step_time"}
# TRL averages them over micro-batches, fastrlhf over a minibatch's tokens
OVER_MICRO_BATCHES = {"entropy", "kl"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """The folder of `group_worker.py`, with every case run."""
    root = tmp_path_factory.mktemp("groups")
    make_models(root / "models")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("group_worker.py")), str(root)],
        env=child_environment(install_trl(TRL_NOW)),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"TRL's side failed:\n{done.stderr[-4000:]}"
    return root


def injected(trainer: type) -> type:
    """The trainer, given its completions."""

    class Injected(trainer):
        def generate_responses(self, input_ids, attention_mask):
            completions = [torch.tensor(tokens) for tokens in next(self.completions)]
            return torch.nn.utils.rnn.pad_sequence(completions, batch_first=True, padding_value=PAD)

    return Injected


def run_ours(case: Case, models: Path, output: Path):
    trainer_class, config_class = SIDES[case.trainer]
    trainer = injected(trainer_class)(
        model=load_policy(models),
        args=config_class(output_dir=str(output), **case.arguments),
        train_dataset=Dataset.from_list(make_prompts(case.even)),
        processing_class=AutoTokenizer.from_pretrained(models / "policy"),
        peft_config=adapter_config() if case.adapter else None,
        **load_rewards(case, models),
    )
    move_reference(trainer, models)
    before = {name: weight.detach().clone() for name, weight in trainer.policy_model.named_parameters()}
    trainer.completions = iter(make_completions())
    trainer.train()
    return trainer, before


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_metrics_and_weights_as_trl(case, theirs, tmp_path, record_property):
    trainer, before = run_ours(case, theirs / "models" / case.family, tmp_path)
    their_log, our_log = json.loads((theirs / f"{case.id}.json").read_text()), trainer.state.log_history
    assert len(our_log) == len(their_log) == ROLLOUTS
    excepted = NOT_COMPARED | (OVER_MICRO_BATCHES if trainer.args.gradient_accumulation_steps > 1 else set())
    differing, worst = [], 0.0
    for step, (here, there) in enumerate(zip(our_log, their_log, strict=True), start=1):
        assert not there.keys() - here.keys()
        for name in there.keys() - excepted:
            if here[name] is None or there[name] is None:
                assert here[name] is there[name], name
                continue
            allowed = RELATIVE * abs(there[name]) + ABSOLUTE
            deviation = abs(here[name] - there[name])
            worst = max(worst, deviation / allowed)
            if not (deviation <= allowed or (math.isnan(here[name]) and math.isnan(there[name]))):
                differing.append(f"rollout {step}, {name}: {here[name]} here, {there[name]} in TRL")
    record_property("metrics_deviation_of_allowed", worst)
    expected = load_file(theirs / f"{case.id}.safetensors")
    actual = dict(trainer.policy_model.named_parameters())
    assert actual.keys() == expected.keys()
    deviation = max(float((actual[name].detach() - expected[name]).abs().max()) for name in expected)
    moved = max(float((before[name] - expected[name]).abs().max()) for name in expected)
    record_property("weights_deviation", deviation)
    assert not differing, "\n".join(differing)
    assert moved > 100 * WEIGHTS, f"the policy moved by {moved}: nothing was compared"
    assert deviation <= WEIGHTS, f"a weight differs by {deviation}, having moved by {moved}"


@pytest.mark.parametrize("name", SIDES)
def test_arguments_fields_and_defaults_are_trls(name, theirs):
    there = json.loads((theirs / "signature.json").read_text())[name]
    trainer, config = SIDES[name]
    assert list(inspect.signature(trainer.__init__).parameters) == there["trainer"]
    ours = {item.name: default(item) for item in dataclasses.fields(config)}
    assert {field: ours.get(field, "missing") for field in there["fields"]} == there["fields"]
