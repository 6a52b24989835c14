"""`fastrlhf sft`."""

from __future__ import annotations

from fastrlhf.commands.dataset_stage import dataset_stage

SFT = dataset_stage(
    "sft",
    "fine-tune a model on texts, conversations or completions",
    "SFT",
    {
        "model": "HuggingFaceTB/SmolLM2-135M",
        "train_dataset": "train.jsonl",
        "output_dir": "runs/sft",
        "learning_rate": 2.0e-5,
        "num_train_epochs": 3.0,
        "per_device_train_batch_size": 8,
        "packing": True,
        "save_total_limit": 2,
    },
)
