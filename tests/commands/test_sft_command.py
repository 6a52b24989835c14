"""`fastrlhf sft` and `fastrlhf init sft`, from the command line's words to the files beside the model."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import subprocess

import pytest
import torch
import yaml
from peft import PeftModel
from transformers import AutoModelForCausalLM

from fastrlhf.cli import main
from fastrlhf.commands.record import commit
from fastrlhf.commands.stage import example
from fastrlhf.commands.stages import STAGES
from fastrlhf.trainers.checkpoint import checkpoints
from tests.support.sft import TURNS, texts
from tests.support.tiny import tiny_llama, tiny_tokenizer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny_llama().save_pretrained(folder)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURNS
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def config(tmp_path, model):
    """A file that trains for four steps, and its folder."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(row) for row in texts()))
    options = {
        "model": str(model),
        "train_dataset": str(rows),
        "output_dir": str(tmp_path / "run"),
        "per_device_train_batch_size": 4,
        "learning_rate": "1e-3",
        "max_steps": 4,
        "logging_steps": 1,
        "save_strategy": "steps",
        "save_steps": 2,
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "bf16": False,
    }
    path = tmp_path / "sft.yaml"
    path.write_text(yaml.safe_dump(options))
    return path


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_run_leaves_the_model_its_metrics_and_what_made_them(config, tmp_path):
    assert main(["sft", str(config), "--max_steps", "3", "--weight-decay=0.1"]) == 0
    run = tmp_path / "run"
    trained = AutoModelForCausalLM.from_pretrained(run)
    assert not torch.equal(trained.lm_head.weight, tiny_llama().lm_head.weight)
    assert sum("loss" in row for row in metrics(run)) == 3
    record = yaml.safe_load((run / "run.yaml").read_text())
    made_of = record["configuration"]
    assert (made_of["max_steps"], made_of["weight_decay"], made_of["learning_rate"]) == (3, 0.1, 1e-3)
    assert made_of["max_length"] == 1024, "every default is there"
    assert record["options"]["train_dataset"].endswith("rows.jsonl")
    assert record["versions"]["torch"] == importlib.metadata.version("torch")
    assert "commit" in record


def test_resume_auto_begins_and_goes_on(config, tmp_path):
    run = tmp_path / "run"
    assert main(["sft", str(config), "--resume", "auto"]) == 0
    whole = AutoModelForCausalLM.from_pretrained(run)
    first = metrics(run)
    last = run / "checkpoint-4"
    last.rename(tmp_path / "elsewhere")
    assert [step for step, _ in checkpoints(run)] == [2]
    assert main(["sft", str(config), "--resume", "auto"]) == 0
    again = AutoModelForCausalLM.from_pretrained(run)
    assert torch.equal(whole.lm_head.weight, again.lm_head.weight)
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (first, metrics(run))]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert main(["sft", str(config), "--resume", str(tmp_path / "elsewhere")]) == 0


def test_an_adapter_and_an_evaluation(config, tmp_path, model):
    held_out = tmp_path / "rows.jsonl"
    flags = ["--peft", "{r: 2, target_modules: all-linear}", "--eval_dataset", str(held_out)]
    flags += ["--eval_strategy", "steps", "--eval_steps", "2", "--tokenizer", str(model)]
    assert main(["sft", str(config), *flags]) == 0
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path / "run")
    assert any("lora_B" in name and weight.any() for name, weight in loaded.named_parameters())
    assert sum("eval_loss" in row for row in metrics(tmp_path / "run")) == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--pakcing", "true"], "fastrlhf sft: 'pakcing' is no option: did you mean 'packing'?"),
        (["--learning_rate", "fast"], "learning_rate is 'fast', expected a number"),
        (["--model", "null"], "model is not set: a folder, or a name on the Hugging Face hub"),
        (["--train_dataset", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
        (["--fp16", "true"], "fp16 is True, which needs loss scaling"),
        (["--resume", "nowhere"], "nowhere is not a folder"),
        (["word"], "'word' stands where a flag is expected"),
    ],
)
def test_what_cannot_be_meant_ends_with_a_sentence(config, flags, message):
    with pytest.raises(SystemExit) as caught:
        main(["sft", str(config), *flags])
    assert message in str(caught.value)


def test_a_bad_row_is_named_by_file_line_and_field(config, tmp_path):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(rows.read_text() + '\n{"text": 7}\n')
    with pytest.raises(SystemExit) as caught:
        main(["sft", str(config)])
    assert f"{rows}, line 25, field 'text': is 7 (int), expected a text" in str(caught.value)
    with pytest.warns(UserWarning, match="1 of 25 rows"):
        assert main(["sft", str(config), "--on_bad_rows", "skip"]) == 0


@pytest.mark.parametrize("name", STAGES)
def test_init_prints_every_option(name, capsys):
    stage = STAGES[name]
    assert main(["init", name]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed) == dict(stage.example)
    lines = [line.removeprefix("# ") for line in printed.splitlines()[1:] if line]
    everything = yaml.safe_load("\n".join(lines))
    fields = {item.name for item in dataclasses.fields(stage.config()) if item.init}
    assert everything.keys() == stage.options.keys() | fields
    assert everything["seed"] == 42 and everything["save_strategy"] == "steps", "defaults are there"
    assert printed == example(stage)
    for option, value in stage.example.items():
        assert option in stage.options or option in fields, (option, value)


def test_the_commit_of_a_folder(tmp_path):
    assert commit(tmp_path) is None
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@y"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "first"]):
        (tmp_path / "file").touch()
        subprocess.run([*git, *words], cwd=tmp_path, check=True)
    clean = commit(tmp_path)
    assert len(clean) == 40
    (tmp_path / "file").write_text("changed")
    assert commit(tmp_path) == f"{clean}-dirty"
