"""`fastrlhf reward`."""

from __future__ import annotations

from fastrlhf.commands.dataset_stage import dataset_stage

REWARD = dataset_stage(
    "reward",
    "train a reward model on the chosen and rejected answers of a dataset",
    "Reward",
    {
        "model": "runs/sft",
        "train_dataset": "preferences.jsonl",
        "output_dir": "runs/reward",
        "learning_rate": 1.0e-5,
        "num_train_epochs": 1.0,
        "per_device_train_batch_size": 8,
        "center_rewards_coefficient": 0.01,
        "save_total_limit": 2,
    },
    task_type="SEQ_CLS",
)
