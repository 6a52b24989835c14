"""Runs TRL's PPOTrainer on the cases of a folder, in a process of its own: `python trl_worker.py FOLDER`.

Reads `FOLDER/models/` and `FOLDER/cases/*/{case.json, rollouts.safetensors}`; writes to each case's folder
`trl.json` (the log, the sizes it derived) and `trl-{policy,value}.safetensors`, and `FOLDER/signature.json`.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer
from trl_signature import signature

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


def inject(responses: list[torch.Tensor]) -> None:
    """Make TRL's generation return these responses, with the scores that `generate` would give for them."""
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


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    (root / "signature.json").write_text(json.dumps(signature(PPOTrainer, PPOConfig)))
    gc.freeze()  # TRL collects garbage several times a step, which took most of the time
    for path in sorted((root / "cases").iterdir()):
        run_case(path, root / "models")
