"""Three steps of supervised fine-tuning from the same weights and rows: losses, metrics and weights of TRL 1.16."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from parity_cases import make_models
from safetensors.torch import load_file
from sft_cases import CASES, STEPS, make_rows, peft_config, tokenizer
from transformers import AutoModelForCausalLM
from trl_process import child_environment, install_trl
from trl_signature import signature

from fastrlhf import SFTConfig, SFTTrainer
from fastrlhf.bench.peers import TRL_NOW

TOLERANCE = 1e-5
CLOCKS = {"total_flos", "epoch", "step"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """The folder of `sft_worker.py`, with every case run."""
    folder, root = install_trl(TRL_NOW), tmp_path_factory.mktemp("sft")
    make_models(root / "models")
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("sft_worker.py")), str(root)],
        env=child_environment(folder),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"TRL's side failed:\n{done.stderr[-4000:]}"
    return root


def policy(theirs: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(theirs / "models" / "llama" / "policy", dtype=torch.float32)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_losses_metrics_and_weights_as_trl(case, theirs, tmp_path, record_property):
    trainer = SFTTrainer(
        policy(theirs),
        SFTConfig(output_dir=str(tmp_path), **case.arguments),
        train_dataset=make_rows(case.rows),
        eval_dataset=make_rows(case.rows)[:8],
        processing_class=tokenizer(),
        peft_config=peft_config(case),
    )
    before = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    trainer.train()
    trainer.evaluate()

    ours, logged = trainer.state.log_history, json.loads((theirs / f"{case.id}.json").read_text())
    assert len(ours) == len(logged) == STEPS + 2
    # TRL averages its micro-batches' means, whatever their tokens
    of_micro_batches = {"entropy", "mean_token_accuracy"} if "accumulation" in case.id else set()
    of_micro_batches |= {"eval_entropy", "eval_mean_token_accuracy"}
    differing = [
        f"entry {at}, {name}: {here.get(name)} here, {value} in TRL"
        for at, (here, there) in enumerate(zip(ours, logged, strict=True))
        for name, value in there.items()
        if not (name.endswith(("runtime", "per_second")) or name in CLOCKS | of_micro_batches)
        and not abs(here.get(name, float("nan")) - value) <= TOLERANCE * max(1, abs(value))
    ]
    assert not differing, "\n".join(differing)
    worst = max(
        abs(here["loss"] - there["loss"]) for here, there in zip(ours, logged, strict=True) if "loss" in there
    )
    record_property("loss_deviation", worst)

    expected = load_file(theirs / f"{case.id}.safetensors")
    actual = dict(trainer.model.named_parameters())
    assert actual.keys() == expected.keys()
    deviation = max(float((actual[name] - expected[name]).abs().max().detach()) for name in expected)
    moved = max(float((before[name] - expected[name]).abs().max().detach()) for name in expected)
    record_property("deviation", deviation)
    assert moved > 10 * TOLERANCE, f"the weights moved by {moved}: nothing was compared"
    assert deviation <= TOLERANCE, f"a weight differs by {deviation}, having moved by {moved}"


@pytest.fixture(scope="module")
def signatures(theirs):
    ours = json.loads(json.dumps(signature(SFTTrainer, SFTConfig, ())))
    return ours, json.loads((theirs / "signature.json").read_text())


def test_trainer_takes_the_same_parameters_in_the_same_order(signatures):
    ours, trl = signatures
    assert ours["trainer"] == trl["trainer"]


def test_config_has_the_same_fields_and_defaults(signatures):
    ours, trl = signatures
    mine = dict(ours["fields"])
    differing = {
        name: (mine.get(name, "missing"), value) for name, value in trl["fields"] if mine.get(name) != value
    }
    assert not differing


def test_configs_come_out_the_same(signatures):
    """`__post_init__` may change a default (bf16 does)."""
    ours, trl = signatures
    differing = {
        name: (ours["values"].get(name, "missing"), value)
        for name, value in trl["values"].items()
        if ours["values"].get(name, "missing") != value
    }
    assert not differing
