"""A script written for TRL 1.12 runs when its import line changes."""

from __future__ import annotations

import json
import subprocess
import sys

from parity_cases import make_models
from trl_process import REPOSITORY, child_environment

TRL_IMPORT = "from trl.experimental.ppo import PPOConfig, PPOTrainer"
OUR_IMPORT = "from fastrlhf import PPOConfig, PPOTrainer"

SCRIPT = '''
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    HfArgumentParser,
    TrainerCallback,
)

IMPORT


class Recorder(TrainerCallback):
    """What a tracker of experiments would see."""

    def __init__(self):
        self.events, self.logged = [], []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append("on_train_begin")

    def on_log(self, args, state, control, logs, **kwargs):
        self.logged.append(sorted(logs))

    def on_step_end(self, args, state, control, **kwargs):
        self.events.append(f"on_step_end {state.global_step} {state.episode}")

    def on_save(self, args, state, control, **kwargs):
        self.events.append("on_save")

    def on_train_end(self, args, state, control, **kwargs):
        self.events.append("on_train_end")


if __name__ == "__main__":
    torch.set_num_threads(1)
    models, results = Path(sys.argv[1]), Path(sys.argv[2])
    (training_args,) = HfArgumentParser(PPOConfig).parse_args_into_dataclasses(sys.argv[3:])

    tokenizer = AutoTokenizer.from_pretrained(models / "policy", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(models / "policy")
    reward_model = AutoModelForSequenceClassification.from_pretrained(models / "reward", num_labels=1)
    value_model = AutoModelForSequenceClassification.from_pretrained(models / "value", num_labels=1)
    peft_config = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")

    prompts = [" ".join(f"w{4 + (7 * row + 3 * k) % 60}" for k in range(1 + row % 5)) for row in range(12)]

    def prepare_dataset(dataset):
        def tokenize(element):
            return {"input_ids": tokenizer(element["prompt"], padding=False)["input_ids"]}

        return dataset.map(tokenize, batched=True, remove_columns=dataset.column_names)

    dataset = Dataset.from_dict({"prompt": prompts})
    recorder = Recorder()
    trainer = PPOTrainer(
        args=training_args,
        processing_class=tokenizer,
        model=policy,
        ref_model=None,
        reward_model=reward_model,
        value_model=value_model,
        train_dataset=prepare_dataset(dataset.select(range(8))),
        eval_dataset=prepare_dataset(dataset.select(range(8, 12))),
        data_collator=DataCollatorWithPadding(tokenizer),
        callbacks=[recorder],
        peft_config=peft_config,
    )
    trainer.train()
    trainer.save_model(training_args.output_dir)
    trainer.generate_completions()

    base = AutoModelForCausalLM.from_pretrained(models / "policy")
    loaded = PeftModel.from_pretrained(base, training_args.output_dir)
    adapter = {name: weight for name, weight in loaded.named_parameters() if "lora_B" in name}
    results.write_text(
        json.dumps(
            {
                "events": recorder.events,
                "logged": recorder.logged,
                "history": [sorted(entry) for entry in trainer.state.log_history],
                "adapter": {name: bool(weight.abs().sum() > 0) for name, weight in adapter.items()},
            }
        )
    )
'''

ARGUMENTS = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "per_device_eval_batch_size": 2,
    "num_mini_batches": 1,
    "num_ppo_epochs": 2,
    "total_episodes": 8,
    "num_sample_generations": 1,
    "response_length": 6,
    "stop_token": "eos",
    "missing_eos_penalty": 1.0,
    "kl_estimator": "k3",
    "learning_rate": 1e-3,
    "report_to": "none",
    "save_strategy": "steps",
    "save_steps": 1,
    "bf16": False,
    "use_cpu": True,
}


def run_script(import_line: str, folder, models, *paths) -> dict:
    """What the script recorded."""
    folder.mkdir()
    script, results = folder / "script.py", folder / "results.json"
    script.write_text(SCRIPT.replace("IMPORT", import_line))
    command = [sys.executable, script, models, results]
    for name, value in (ARGUMENTS | {"output_dir": folder / "out"}).items():
        command += [f"--{name}", value]
    done = subprocess.run(
        list(map(str, command)), env=child_environment(*paths), cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{import_line}:\n{done.stderr[-4000:]}"
    assert "model response" in done.stdout, "no completions were shown"
    return json.loads(results.read_text())


def test_script_for_trl_runs_with_only_its_import_changed(trl_folder, tmp_path):
    make_models(tmp_path / "models")
    models = tmp_path / "models" / "llama"
    theirs = run_script(TRL_IMPORT, tmp_path / "theirs", models, trl_folder)
    ours = run_script(OUR_IMPORT, tmp_path / "ours", models, REPOSITORY)
    assert ours["events"] == theirs["events"]
    assert ours["adapter"] == theirs["adapter"] and all(ours["adapter"].values())
    assert len(ours["logged"]) == len(theirs["logged"]) == 2
    for name in ("logged", "history"):
        for here, there in zip(ours[name], theirs[name], strict=True):
            assert not set(there) - set(here)
