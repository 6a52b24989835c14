"""`fastrlhf dpo` and `fastrlhf reward`, from the command line's words to the models."""

from __future__ import annotations

import json

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from fastrlhf.cli import main
from tests.support.preferences import pairs
from tests.support.sft import TINY_RUN, TURNS
from tests.support.tiny import tiny_llama, tiny_llama_classifier, tiny_tokenizer

AUTO = {"dpo": AutoModelForCausalLM, "reward": AutoModelForSequenceClassification}
MAKE = {"dpo": tiny_llama, "reward": tiny_llama_classifier}


@pytest.fixture
def config(tmp_path):
    """A file that both commands take."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURNS
    for name, make in MAKE.items():
        make().save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in pairs()))
    options = TINY_RUN | {"train_dataset": str(rows), "output_dir": str(tmp_path / "run"), "max_steps": 3}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def logged(folder, name):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[name] for row in rows if name in row]


@pytest.mark.parametrize("name", AUTO)
def test_a_run_leaves_the_model_its_metrics_and_what_made_them(config, tmp_path, name):
    flags = ["--model", str(tmp_path / name), "--eval_dataset", str(tmp_path / "rows.jsonl")]
    flags += ["--eval_strategy", "steps", "--eval_steps", "3"]
    assert main([name, str(config), *flags]) == 0
    run = tmp_path / "run"
    trained = AUTO[name].from_pretrained(run)
    assert not torch.equal(trained.model.norm.weight, MAKE[name]().model.norm.weight)
    assert len(logged(run, "loss")) == 3 and len(logged(run, "eval_loss")) == 1
    assert yaml.safe_load((run / "run.yaml").read_text())["options"]["model"] == str(tmp_path / name)


@pytest.mark.parametrize("name", AUTO)
def test_an_adapter(config, tmp_path, name):
    lora = "{r: 2, target_modules: all-linear, exclude_modules: [lm_head, score]}"
    assert main([name, str(config), "--model", str(tmp_path / name), "--peft", lora]) == 0
    loaded = PeftModel.from_pretrained(MAKE[name](), tmp_path / "run")
    assert any("lora_B" in key and weight.any() for key, weight in loaded.named_parameters())


def test_a_reference_of_its_own(config, tmp_path):
    tiny_llama(seed=3).save_pretrained(tmp_path / "other")
    flags = ["--model", str(tmp_path / "dpo")]
    assert main(["dpo", str(config), *flags]) == 0
    alone = logged(tmp_path / "run", "loss")
    flags += ["--ref_model", str(tmp_path / "other"), "--output_dir", str(tmp_path / "with")]
    assert main(["dpo", str(config), *flags]) == 0
    assert alone[0] == pytest.approx(0.6931, abs=1e-4) and logged(tmp_path / "with", "loss")[0] != alone[0]


def test_a_reward_model_of_a_language_model(config, tmp_path):
    assert main(["reward", str(config), "--model", str(tmp_path / "dpo")]) == 0
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "run").score.weight.shape[0] == 1


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("dpo", ["--bta", "0.1"], "fastrlhf dpo: 'bta' is no option: did you mean 'beta'?"),
        ("dpo", ["--loss_type", "hinge"], "loss_type is ['hinge'], expected of"),
        ("reward", ["--ref_model", "x"], "'ref_model' is no option"),
        ("reward", ["--train_dataset", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_what_cannot_be_meant_ends_with_a_sentence(config, tmp_path, name, flags, message):
    with pytest.raises(SystemExit) as caught:
        main([name, str(config), "--model", str(tmp_path / name), *flags])
    assert message in str(caught.value)
