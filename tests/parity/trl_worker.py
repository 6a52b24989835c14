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
from parity_cases import load_models
from safetensors.torch import load_file, save_file
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
    loaded = load_models(models / case["family"], case["adapter"])
    trainer = PPOTrainer(
        PPOConfig(output_dir=str(folder / "trl"), **case["arguments"]),
        loaded.tokenizer,
        loaded.policy,
        loaded.reference,
        loaded.reward,
        Dataset.from_dict({"input_ids": rollouts["prompts"].flatten(0, 1).tolist()}),
        loaded.value,
    )
    # a plain list also keeps accelerate from stepping at every micro-batch of a data loader's last batch
    trainer.dataloader = [{"input_ids": prompts} for prompts in rollouts["prompts"]]
    inject(list(rollouts["responses"]))
    trainer.train()
    results = {
        "log_history": trainer.state.log_history,
        "sizes": {name: getattr(trainer.args, name) for name in SIZES},
    }
    (folder / "trl.json").write_text(json.dumps(results))
    for role, model in (("policy", loaded.policy), ("value", loaded.value)):
        weights = {name: weight.detach().clone() for name, weight in model.named_parameters()}
        save_file(weights, folder / f"trl-{role}.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    (root / "signature.json").write_text(json.dumps(signature(PPOTrainer, PPOConfig)))
    gc.freeze()  # TRL collects garbage several times a step, which took most of the time
    for path in sorted((root / "cases").iterdir()):
        run_case(path, root / "models")
