"""`fastrlhf dpo`."""

from __future__ import annotations

from fastrlhf.commands.dataset_stage import REF_MODEL, dataset_stage

DPO = dataset_stage(
    "dpo",
    "make a model prefer the chosen answers of a dataset, by direct preference optimization",
    "DPO",
    {
        "model": "runs/sft",
        "train_dataset": "preferences.jsonl",
        "output_dir": "runs/dpo",
        "learning_rate": 1.0e-6,
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 8,
        "beta": 0.1,
        "precompute_ref_log_probs": True,
        "save_total_limit": 2,
    },
    options=REF_MODEL,
)
