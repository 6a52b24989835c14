"""Three steps of supervised fine-tuning from the same weights and rows: losses, metrics and weights of TRL 1.16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from comparison import assert_same_log, assert_same_signature, assert_same_weights, run_worker
from safetensors.torch import load_file
from sft_cases import CASES, STEPS, make_rows, peft_config, tokenizer
from transformers import AutoModelForCausalLM
from trl_signature import signature

from fastrlhf import SFTConfig, SFTTrainer


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """The folder of `sft_worker.py`, with every case run."""
    return run_worker("sft_worker.py", tmp_path_factory.mktemp("sft"))


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

    logged = json.loads((theirs / f"{case.id}.json").read_text())
    assert len(logged) == STEPS + 2
    # TRL averages its micro-batches' means, whatever their tokens
    of_micro_batches = {"entropy", "mean_token_accuracy"} if "accumulation" in case.id else set()
    of_micro_batches |= {"eval_entropy", "eval_mean_token_accuracy"}
    assert_same_log(trainer.state.log_history, logged, of_micro_batches, record_property)
    expected = load_file(theirs / f"{case.id}.safetensors")
    assert_same_weights(dict(trainer.model.named_parameters()), expected, before, record_property)


def test_the_same_arguments_fields_and_defaults(theirs):
    ours = json.loads(json.dumps(signature(SFTTrainer, SFTConfig, ())))
    assert_same_signature(ours, json.loads((theirs / "signature.json").read_text()))
