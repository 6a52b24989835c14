"""Three steps on preferences from the same weights and rows: losses, metrics and weights of TRL 1.16."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from comparison import assert_same_log, assert_same_signature, assert_same_weights, run_worker
from preference_cases import CASES, load_models, make_rows, peft_config
from safetensors.torch import load_file
from sft_cases import STEPS, tokenizer
from trl_signature import signature

from fastrlhf import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer

STAGES = {"dpo": (DPOTrainer, DPOConfig), "reward": (RewardTrainer, RewardConfig)}
OVER_TOKENS = {"entropy", "mean_token_accuracy", "logits/chosen", "logits/rejected"}


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> Path:
    """The folder of `preference_worker.py`, with every case run."""
    return run_worker("preference_worker.py", tmp_path_factory.mktemp("preferences"))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_same_losses_metrics_and_weights_as_trl(case, theirs, tmp_path, record_property):
    trainer_class, config = STAGES[case.stage]
    model, reference = load_models(case, theirs / "models" / "llama")
    trainer = trainer_class(
        model,
        **reference,
        args=config(output_dir=str(tmp_path), **case.arguments),
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
    leave_out = OVER_TOKENS if "accumulation" in case.id else set()
    assert_same_log(trainer.state.log_history, logged, leave_out, record_property)
    trained = {name: weight for name, weight in trainer.model.named_parameters() if weight.requires_grad}
    assert_same_weights(trained, load_file(theirs / f"{case.id}.safetensors"), before, record_property)


@pytest.mark.parametrize("stage", STAGES)
def test_the_same_arguments_fields_and_defaults(stage, theirs):
    ours = json.loads(json.dumps(signature(*STAGES[stage], ())))
    assert_same_signature(ours, json.loads((theirs / f"{stage}-signature.json").read_text()))
