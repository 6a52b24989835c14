"""Runs TRL 1.16's GRPO and RLOO trainers on the cases, in a process of its own: `python group_worker.py FOLDER`.

Reads `FOLDER/models/`; writes `FOLDER/<case>.json` (the log), `FOLDER/<case>.safetensors` (the policy's weights) and
`FOLDER/signature.json`.
"""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import sys
from pathlib import Path

import torch
import trl
from datasets import Dataset
from group_cases import (
    CASES,
    Case,
    adapter_config,
    default,
    load_policy,
    load_rewards,
    make_completions,
    make_prompts,
    move_reference,
)
from safetensors.torch import save_file
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from trl.trainer import grpo_trainer, rloo_trainer

SIDES = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}


def injected(trainer: type) -> type:
    """The trainer, given its completions."""

    class Injected(trainer):
        def _generate_single_turn(self, *args, **kwargs):
            completion_ids = next(self.completions)
            return completion_ids if isinstance(self, RLOOTrainer) else (completion_ids, None)

    return Injected


def run_case(case: Case, root: Path) -> None:
    """Train as the case says, and write what came of it."""
    models = root / "models" / case.family
    trainer_class, config_class = SIDES[case.trainer]
    trainer = injected(trainer_class)(
        model=load_policy(models),
        args=config_class(output_dir=str(root / case.id), **case.arguments),
        train_dataset=Dataset.from_list(make_prompts(case.even)),
        processing_class=AutoTokenizer.from_pretrained(models / "policy"),
        peft_config=adapter_config() if case.adapter else None,
        **load_rewards(case, models),
    )
    move_reference(trainer, models)
    trainer.completions = iter(make_completions())
    trainer.train()
    (root / f"{case.id}.json").write_text(
        json.dumps(trainer.state.log_history[: len(trainer.state.log_history) - 1])
    )
    weights = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
    save_file(weights, root / f"{case.id}.safetensors")


def signatures() -> dict:
    """Parameters of the trainers, and the fields of their configurations with their defaults."""
    return {
        name: {
            "trainer": list(inspect.signature(trainer.__init__).parameters),
            "fields": {item.name: default(item) for item in dataclasses.fields(config)},
        }
        for name, (trainer, config) in SIDES.items()
    }


if __name__ == "__main__":
    assert trl.__version__ == "1.16.0"
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    (folder / "signature.json").write_text(json.dumps(signatures()))
    # our minibatches take the rows in their order
    grpo_trainer.shuffle_sequence_dict = rloo_trainer.shuffle_sequence_dict = lambda batch: batch
    gc.freeze()
    for each in CASES:
        run_case(each, folder)
