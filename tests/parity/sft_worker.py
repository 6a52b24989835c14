"""Runs TRL's SFTTrainer on every case, in a process of its own: `python sft_worker.py FOLDER`.

Reads `FOLDER/models/llama/policy`; writes `FOLDER/<case>.json` (the log), `FOLDER/<case>.safetensors` (the trained
weights) and `FOLDER/signature.json`.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import torch
from datasets import Dataset
from safetensors.torch import save_file
from sft_cases import CASES, make_rows, peft_config, tokenizer
from transformers import AutoModelForCausalLM
from trl import SFTConfig, SFTTrainer
from trl_signature import signature

if __name__ == "__main__":
    torch.set_num_threads(1)
    root = Path(sys.argv[1])
    (root / "signature.json").write_text(json.dumps(signature(SFTTrainer, SFTConfig, ())))
    gc.freeze()
    for case in CASES:
        rows = Dataset.from_list(make_rows(case.rows))
        trainer = SFTTrainer(
            AutoModelForCausalLM.from_pretrained(root / "models" / "llama" / "policy", dtype=torch.float32),
            SFTConfig(output_dir=str(root / "out"), **case.arguments),
            train_dataset=rows,
            eval_dataset=rows.select(range(8)),
            processing_class=tokenizer(),
            peft_config=peft_config(case),
        )
        trainer.train()
        trainer.evaluate()
        (root / f"{case.id}.json").write_text(json.dumps(trainer.state.log_history))
        weights = {name: weight.detach().clone() for name, weight in trainer.model.named_parameters()}
        save_file(weights, root / f"{case.id}.safetensors")
