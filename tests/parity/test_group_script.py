"""A script written for TRL 1.16's GRPO or RLOO runs when its import line changes."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from parity_cases import make_models
from trl_process import REPOSITORY, child_environment, install_trl

from fastrlhf.bench.peers import TRL_NOW

SCRIPT = '''
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, HfArgumentParser, TrainerCallback

from LIBRARY import KINDConfig, KINDTrainer


class Recorder(TrainerCallback):
    """What a tracker of experiments would see."""

    def __init__(self):
        self.events, self.logged = [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("on_train_begin")

    def on_log(self, args, state, control, logs, **kwargs):
        self.logged.append(sorted(logs))

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(f"on_step_end {state.global_step} {state.max_steps} {state.epoch}")

    def on_save(self, args, state, control, **kwargs):
        self.events.append("on_save")

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("on_train_end")


def agrees(completions, answer, trainer_state, **kwargs):
    assert trainer_state.max_steps == 4
    return [float(right in completion[0]["content"].split()) for completion, right in zip(completions, answer)]


async def brief(completions, log_metric, **kwargs):
    lengths = [len(completion[0]["content"].split()) for completion in completions]
    log_metric("longest", max(lengths))
    return [None if length > 4 else -float(length) for length in lengths]


if __name__ == "__main__":
    torch.set_num_threads(1)
    models, results = Path(sys.argv[1]), Path(sys.argv[2])
    (training_args,) = HfArgumentParser(KINDConfig).parse_args_into_dataclasses(sys.argv[3:])
    tokenizer = AutoTokenizer.from_pretrained(models / "policy", padding_side="left")
    tokenizer.chat_template = (
        "{% for message in messages %}{{ message['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}w9{% endif %}"
    )
    rows = [
        {"prompt": [{"role": "user", "content": f"w{4 + row} w{5 + row}"}], "answer": f"w{6 + row}"}
        for row in range(8)
    ]
    dataset = Dataset.from_list(rows)
    recorder = Recorder()
    trainer = KINDTrainer(
        model=str(models / "policy"),
        reward_funcs=[agrees, brief],
        args=training_args,
        train_dataset=dataset,
        eval_dataset=dataset.select(range(2)),
        processing_class=tokenizer,
        callbacks=[recorder],
        peft_config=LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    evaluated = sorted(trainer.evaluate())

    base = AutoModelForCausalLM.from_pretrained(models / "policy")
    loaded = PeftModel.from_pretrained(base, training_args.output_dir)
    adapter = {name: weight for name, weight in loaded.named_parameters() if "lora_B" in name}
    files = sorted(path.name for path in Path(training_args.output_dir).glob("completions/*"))
    results.write_text(
        json.dumps(
            {
                "events": recorder.events,
                "logged": recorder.logged,
                "evaluated": evaluated,
                "adapter": {name: bool(weight.abs().sum() > 0) for name, weight in adapter.items()},
                "completions": files,
            }
        )
    )
'''

ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "per_device_eval_batch_size": 4,
    "num_generations": 4,
    "max_completion_length": 6,
    "num_train_epochs": 1,
    "max_steps": 4,
    "logging_steps": 2,
    "learning_rate": 1e-3,
    "beta": 0.04,
    "temperature": 0.9,
    "top_k": 50,
    "reward_weights": (1.0, 0.1),
    "log_completions": True,
    "num_completions_to_print": 1,
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 2,
    "bf16": False,
    "use_cpu": True,
}
# TRL's evaluation also computes the loss (and what goes with it), and its speed
OF_THE_LOSS = ("eval_loss", "eval_entropy", "eval_clip_ratio/", "eval_kl", "eval_num_tokens")
OF_THE_SPEED = (
    "eval_runtime",
    "eval_samples_per_second",
    "eval_steps_per_second",
    "eval_model_preparation_time",
)


def run_script(library: str, kind: str, folder, models, *paths) -> dict:
    """What the script recorded."""
    folder.mkdir()
    script, results = folder / "script.py", folder / "results.json"
    script.write_text(SCRIPT.replace("LIBRARY", library).replace("KIND", kind))
    command = [sys.executable, script, models, results]
    for name, value in (ARGUMENTS | {"output_dir": folder / "out"}).items():
        command += [f"--{name}", *(value if isinstance(value, tuple) else (value,))]
    done = subprocess.run(
        list(map(str, command)), env=child_environment(*paths), cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{library}:\n{done.stderr[-4000:]}"
    return json.loads(results.read_text())


@pytest.mark.parametrize("kind", ["GRPO", "RLOO"])
def test_script_for_trl_runs_with_only_its_import_changed(tmp_path, kind):
    trl_folder = install_trl(TRL_NOW)
    make_models(tmp_path / "models")
    models = tmp_path / "models" / "llama"
    theirs = run_script("trl", kind, tmp_path / "theirs", models, trl_folder)
    ours = run_script("fastrlhf", kind, tmp_path / "ours", models, REPOSITORY)
    assert ours["events"] == theirs["events"]
    assert ours["adapter"] == theirs["adapter"] and all(ours["adapter"].values())
    if kind == "GRPO":  # TRL's RLOO writes no file
        assert theirs["completions"] == ["completions_00002.parquet", "completions_00004.parquet"]
    assert ours["completions"] == ["completions_00002.parquet", "completions_00004.parquet"]
    their_logs = [set(names) for names in theirs["logged"] if "loss" in names]
    our_logs = [set(names) for names in ours["logged"] if "loss" in names]
    assert len(our_logs) == len(their_logs) == 2
    for here, there in zip(our_logs, their_logs, strict=True):
        assert not there - here
    excepted = (*OF_THE_LOSS, *OF_THE_SPEED, "epoch")
    there = {name for name in theirs["evaluated"] if not name.startswith(excepted)}
    assert len(there) > 10 and not there - set(ours["evaluated"])
