"""Runs TRL's PPOTrainer on the cases of a folder, in a process of its own: `python trl_worker.py FOLDER`.

Reads `FOLDER/models/` and `FOLDER/cases/*/{case.json, rollouts.safetensors}`; writes to each case's folder
`trl.json` (the log, the sizes it derived) and `trl-{policy,value}.safetensors`, and `FOLDER/signature.json`.
"""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

SIZES = (
    "world_size",
    "num_total_batches",
    "batch_size",
    "local_batch_size",
    "mini_batch_size",
    "local_mini_batch_size",
    "micro_batch_size",
    "total_episodes",
)
METHODS = ("train", "generate_completions", "save_model", "get_train_dataloader", "get_eval_dataloader")


def inject(responses: list[torch.Tensor]) -> None:
    """Make TRL's generation return these responses, and the scores that its `generate` would give for them."""
    waiting = iter(responses)

    @torch.no_grad()
    def batch_generation(model, queries, local_rollout_forward_batch_size, pad_token_id, generation_config):
        query_responses = torch.cat([queries, next(waiting)], dim=1)
        logits = ppo_trainer.forward(model, query_responses, pad_token_id).logits[
            :, queries.shape[1] - 1 : -1
        ]
        return query_responses, logits / generation_config.temperature

    ppo_trainer.batch_generation = batch_generation


def run_case(folder: Path, models: Path) -> None:
    """Train as the case says, and write what came of it."""
    case = json.loads((folder / "case.json").read_text())
    rollouts = load_file(folder / "rollouts.safetensors")
    models = models / case["family"]
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(models / role, dtype=torch.float32)
        for role in ("policy", "reference")
    )
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(models / role, dtype=torch.float32)
        for role in ("reward", "value")
    )
    tokenizer = AutoTokenizer.from_pretrained(models / "policy")
    trainer = PPOTrainer(
        PPOConfig(output_dir=str(folder / "trl"), **case["arguments"]),
        tokenizer,
        policy,
        reference,
        reward,
        Dataset.from_dict({"input_ids": rollouts["prompts"].flatten(0, 1).tolist()}),
        value,
    )
    trainer.dataloader = [{"input_ids": prompts} for prompts in rollouts["prompts"]]
    inject(list(rollouts["responses"]))
    trainer.train()
    results = {
        "log_history": trainer.state.log_history,
        "sizes": {name: getattr(trainer.args, name) for name in SIZES},
    }
    (folder / "trl.json").write_text(json.dumps(results))
    for role, model in (("policy", policy), ("value", value)):
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        save_file(weights, folder / f"trl-{role}.safetensors")


def parameters(function) -> list[list[str | None]]:
    """Name, kind and default of each parameter but self."""
    return [
        [name, parameter.kind.name, None if parameter.default is parameter.empty else repr(parameter.default)]
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self"
    ]


def config_fields(config: type) -> list[list[str]]:
    """Name and default of each field, in order."""
    made = {
        item.name: item.default_factory()
        for item in dataclasses.fields(config)
        if item.default_factory is not dataclasses.MISSING
    }
    return [[item.name, repr(made.get(item.name, item.default))] for item in dataclasses.fields(config)]


def signature(trainer: type, config: type) -> dict:
    """All that a script written for a trainer relies on."""
    return {
        "trainer": parameters(trainer.__init__),
        "methods": {name: parameters(getattr(trainer, name)) for name in METHODS},
        "config": parameters(config.__init__),
        "fields": config_fields(config),
    }


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    (root / "signature.json").write_text(json.dumps(signature(PPOTrainer, PPOConfig)))
    gc.freeze()  # TRL collects garbage several times a step, which took most of the time
    for path in sorted((root / "cases").iterdir()):
        run_case(path, root / "models")
