"""Tiny runs on preferences."""

from __future__ import annotations

import random
from typing import Any

from fastrlhf import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
from tests.support.sft import TINY_RUN, TURNS, words
from tests.support.tiny import tiny_llama, tiny_llama_classifier, tiny_tokenizer

ARGUMENTS = (
    "model",
    "ref_model",
    "data_collator",
    "train_dataset",
    "eval_dataset",
    "processing_class",
    "compute_metrics",
    "callbacks",
    "optimizers",
    "optimizer_cls_and_kwargs",
    "preprocess_logits_for_metrics",
    "quantization_config",
    "peft_config",
)


def pairs(rows: int = 24, seed: int = 0, **more: Any) -> list[dict[str, Any]]:
    """Prompts with two answers of random words; small words are preferred."""
    rng = random.Random(seed)

    def answer(low: int, high: int) -> str:
        return " ".join(f"t{rng.randrange(low, high)}" for _ in range(rng.randint(2, 9)))

    return [
        {"prompt": words(rng, 2, 6) + " ", "chosen": answer(0, 14), "rejected": answer(14, 28)} | more
        for _ in range(rows)
    ]


def conversations(rows: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """The same as conversations of one turn, without a prompt of their own."""
    return [
        {
            side: [
                {"role": "user", "content": row["prompt"].strip()},
                {"role": "assistant", "content": row[side]},
            ]
            for side in ("chosen", "rejected")
        }
        for row in pairs(rows, seed)
    ]


def dpo_trainer(output_dir: Any, **overrides: Any) -> DPOTrainer:
    """A trainer with tiny everything; `overrides` are arguments of `DPOTrainer`, or of `DPOConfig`."""
    return _trainer(DPOTrainer, DPOConfig, tiny_llama, output_dir, overrides)


def reward_trainer(output_dir: Any, **overrides: Any) -> RewardTrainer:
    """A trainer with tiny everything; `overrides` are arguments of `RewardTrainer`, or of `RewardConfig`."""
    return _trainer(RewardTrainer, RewardConfig, tiny_llama_classifier, output_dir, overrides)


TRAINERS = {"dpo": dpo_trainer, "reward": reward_trainer}


def _trainer(trainer_class: type, config: type, make_model: Any, output_dir: Any, overrides: dict) -> Any:
    given = {name: overrides.pop(name) for name in ARGUMENTS if name in overrides}
    trainer_class, config = (
        overrides.pop("trainer_class", trainer_class),
        overrides.pop("config_class", config),
    )
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURNS
    options = {"model": None, "train_dataset": pairs(), "processing_class": tokenizer} | given
    options["model"] = make_model() if options["model"] is None else options["model"]
    return trainer_class(args=config(**({"output_dir": str(output_dir)} | TINY_RUN | overrides)), **options)
