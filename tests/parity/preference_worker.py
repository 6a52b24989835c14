"""Runs TRL's DPOTrainer and RewardTrainer on every case, in a process of its own: `python preference_worker.py FOLDER`.

Reads `FOLDER/models/llama`; writes `FOLDER/<case>.json` (the log), `FOLDER/<case>.safetensors` (the trained weights)
and `FOLDER/<stage>-signature.json`.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from preference_cases import CASES, load_models, make_rows, peft_config
from safetensors.torch import save_file
from sft_cases import tokenizer
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from trl_signature import signature

STAGES = {"dpo": (DPOTrainer, DPOConfig), "reward": (RewardTrainer, RewardConfig)}

if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    for stage, (trainer_class, config) in STAGES.items():
        (root / f"{stage}-signature.json").write_text(json.dumps(signature(trainer_class, config, ())))
    gc.freeze()
    for case in CASES:
        trainer_class, config = STAGES[case.stage]
        rows = Dataset.from_list(make_rows(case.rows))
        model, reference = load_models(case, root / "models" / "llama")
        trainer = trainer_class(
            model,
            **reference,
            args=config(output_dir=str(root / "out"), **(case.arguments | case.theirs)),
            train_dataset=rows,
            eval_dataset=rows.select(range(8)),
            processing_class=tokenizer(),
            peft_config=peft_config(case),
        )
        trainer.train()
        trainer.evaluate()
        (root / f"{case.id}.json").write_text(json.dumps(trainer.state.log_history))
        trained = {
            name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad
        }
        save_file(trained, root / f"{case.id}.safetensors")
