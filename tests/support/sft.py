"""Tiny runs of supervised fine-tuning."""

from __future__ import annotations

import random
from typing import Any

from fastrlhf import SFTConfig, SFTTrainer
from tests.support.tiny import tiny_llama, tiny_tokenizer

TURNS = (
    "{% for m in messages %}{% if m.role == 'user' %}t0 {{ m.content }} t2 {% else %}"
    "t1 {{ m.content }} <eos> t2 {% endif %}{% endfor %}{% if add_generation_prompt %}t1 {% endif %}"
)


def words(rng: random.Random, least: int, most: int) -> str:
    return " ".join(f"t{rng.randrange(28)}" for _ in range(rng.randint(least, most)))


def texts(rows: int = 24, seed: int = 0) -> list[dict[str, str]]:
    """Texts of 3 to 20 random words."""
    rng = random.Random(seed)
    return [{"text": words(rng, 3, 20)} for _ in range(rows)]


def completions(rows: int = 24, seed: int = 0) -> list[dict[str, str]]:
    """Prompts and completions of random words."""
    rng = random.Random(seed)
    return [{"prompt": words(rng, 2, 6) + " ", "completion": words(rng, 2, 9)} for _ in range(rows)]


def conversations(rows: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """One to three turns each."""
    rng = random.Random(seed)
    return [
        {
            "messages": [
                {"role": role, "content": words(rng, 2, 4)}
                for _ in range(rng.randint(1, 3))
                for role in ("user", "assistant")
            ]
        }
        for _ in range(rows)
    ]


# Six steps of two times two rows, every one logged, no checkpoint unless asked for.
TINY_RUN = {
    "per_device_train_batch_size": 2,
    "gradient_accumulation_steps": 2,
    "max_steps": 6,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "bf16": False,
    "disable_tqdm": True,
}


def sft_config(output_dir: Any, **overrides: Any) -> SFTConfig:
    """A tiny run."""
    return SFTConfig(**({"output_dir": str(output_dir)} | TINY_RUN | overrides))


def sft_trainer(output_dir: Any, **overrides: Any) -> SFTTrainer:
    """A trainer with tiny everything; `overrides` are arguments of `SFTTrainer`, or of `SFTConfig`."""
    names = ("model", "train_dataset", "eval_dataset", "processing_class", "peft_config", "data_collator")
    names += ("callbacks", "formatting_func", "optimizers", "optimizer_cls_and_kwargs", "compute_loss_func")
    names += ("compute_metrics", "preprocess_logits_for_metrics", "quantization_config")
    given = {name: overrides.pop(name) for name in names if name in overrides}
    trainer_class = overrides.pop("trainer_class", SFTTrainer)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TURNS
    options = {"model": None, "train_dataset": texts(), "processing_class": tokenizer} | given
    options["model"] = tiny_llama() if options["model"] is None else options["model"]
    return trainer_class(args=sft_config(output_dir, **overrides), **options)


def losses(trainer: SFTTrainer) -> list[float]:
    """The loss of every logged step."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
