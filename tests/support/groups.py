"""Trainers of groups so small that a step takes a fraction of a second."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from fastrlhf import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
from tests.support.tiny import WORDS, tiny_llama, tiny_tokenizer

SIDES = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
ARGUMENTS = (
    "model",
    "reward_funcs",
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "reward_processing_classes",
    "callbacks",
    "optimizers",
    "peft_config",
)


def group_rows(rows: int = 16, longest: int = 4) -> Dataset:
    """Prompts of one to `longest` words as text, and a column of numbers."""
    prompts = [
        " ".join(f"t{(5 * row + word) % WORDS}" for word in range(1 + row % longest)) for row in range(rows)
    ]
    return Dataset.from_dict({"prompt": prompts, "number": list(range(rows))})


def small_words(completions: list[str], **_: Any) -> list[float]:
    """The share of small words in each completion."""
    return [
        sum(word[1:].isdigit() and int(word[1:]) < WORDS // 2 for word in text.split())
        / max(1, len(text.split()))
        for text in completions
    ]


def group_config(kind: str, folder: Any, **options: Any) -> GRPOConfig | RLOOConfig:
    """Four rollouts of two prompts and four completions each, one update each, logged each; no checkpoint."""
    defaults = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 6,
        "max_steps": 4,
        "learning_rate": 1e-2,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 7,
    }
    return SIDES[kind][1](**{**defaults, **options})


def group_trainer(
    kind: str, folder: Any, *, cls: type | None = None, **options: Any
) -> GRPOTrainer | RLOOTrainer:
    """A trainer of a tiny Llama on `small_words`.

    Args:
        kind: "grpo" or "rloo".
        cls: in place of the trainer of that kind.
        options: arguments of the trainer by name; the others go to `group_config`.
    """
    given = {name: options.pop(name) for name in ARGUMENTS if name in options}
    arguments = {
        "model": given.pop("model", None) or tiny_llama(),
        "reward_funcs": small_words,
        "train_dataset": group_rows(),
        "processing_class": tiny_tokenizer(),
        **given,
    }
    return (cls or SIDES[kind][0])(args=group_config(kind, folder, **options), **arguments)
