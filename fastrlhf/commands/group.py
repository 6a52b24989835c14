"""`fastrlhf grpo` and `fastrlhf rloo`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastrlhf.commands.parts import MODEL, ON_BAD_ROWS, PEFT, PROMPTS, TOKENIZER, adapter, prompts, require
from fastrlhf.commands.rewards import REWARDS, find_rewards
from fastrlhf.commands.stage import Stage

OPTIONS = {
    "model": f"the policy: {MODEL}",
    "rewards": REWARDS,
    "train_dataset": f"{PROMPTS}; other columns go to the reward functions",
    "eval_dataset": "the same, held out",
    "tokenizer": TOKENIZER,
    "peft": PEFT,
    "on_bad_rows": ON_BAD_ROWS,
}
EXAMPLE = {
    "model": "runs/sft",
    "rewards": "rewards.py:exact_match",
    "train_dataset": "prompts.jsonl",
    "learning_rate": 1.0e-6,
    "num_train_epochs": 1.0,
    "per_device_train_batch_size": 8,
    "gradient_accumulation_steps": 4,
    "max_completion_length": 256,
    "save_total_limit": 2,
}


def _build(trainer: type, args: Any, options: Mapping[str, Any]) -> Any:
    require(options, OPTIONS, "model", "rewards", "train_dataset")
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    from fastrlhf.models.saved import load_saved_tokenizer

    def scorer(name: str) -> Any:
        return _named(name, AutoModelForSequenceClassification, num_labels=1)

    return trainer(
        _named(options["model"], AutoModelForCausalLM),
        find_rewards(options["rewards"], scorer),
        args,
        train_dataset=prompts(options, "train_dataset"),
        eval_dataset=prompts(options, "eval_dataset", "test"),
        processing_class=load_saved_tokenizer(
            options.get("tokenizer") or options["model"], padding_side="left", truncation_side="left"
        ),
        peft_config=adapter(options.get("peft")),
    )


def _named(name: str, auto_class: Any, **more: Any) -> Any:
    """The name, which the trainer loads the model of; or the model, where the name is an adapter's folder."""
    import torch

    from fastrlhf.models.saved import is_adapter, load_saved

    return load_saved(name, auto_class, dtype=torch.float32, **more) if is_adapter(name) else name


def _stage(name: str, help: str, classes: Callable[[], tuple[type, type]], **example: Any) -> Stage:
    """A command of the trainer and configuration that `classes` imports."""
    return Stage(
        name,
        help,
        lambda: classes()[1],
        OPTIONS,
        EXAMPLE | {"output_dir": f"runs/{name}"} | example,
        lambda args, options: _build(classes()[0], args, options),
    )


def _grpo() -> tuple[type, type]:
    from fastrlhf.grpo import GRPOConfig, GRPOTrainer

    return GRPOTrainer, GRPOConfig


def _rloo() -> tuple[type, type]:
    from fastrlhf.grpo import RLOOConfig, RLOOTrainer

    return RLOOTrainer, RLOOConfig


GRPO = _stage(
    "grpo", "train a model by comparing completions of the same prompt (GRPO)", _grpo, num_generations=8
)
RLOO = _stage(
    "rloo", "train a model by REINFORCE against the other completions of a prompt", _rloo, num_generations=4
)
