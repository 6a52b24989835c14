"""What both sides' trainers on preferences are given: rows, and the options of each case."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel
from sft_cases import COMMON
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification


@dataclass(frozen=True)
class Case:
    """One run of both trainers.

    Attributes:
        stage: "dpo" or "reward".
        theirs: options that TRL is given in place of ours, where it calls the same by another name.
        adapter: "new", or "old" where the model has one already.
        reference: whether a reference model is passed.
    """

    stage: str
    name: str
    rows: str = "prompt"
    options: dict[str, Any] = field(default_factory=dict)
    theirs: dict[str, Any] = field(default_factory=dict)
    adapter: str = ""
    reference: bool = False

    @property
    def id(self) -> str:
        return f"{self.stage}-{self.name}"

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of our configuration."""
        return COMMON | self.options


TWO_OF_TWO = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
FOUR_OF_ONE = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
CASES = [
    Case("dpo", "sigmoid"),
    Case("dpo", "ipo", options={"loss_type": "ipo"}),
    # in pairs of one, TRL's loss between the sorted log-ratios of a batch is cDPO's
    Case(
        "dpo",
        "cdpo-accumulation",
        options=FOUR_OF_ONE | {"label_smoothing": 0.2},
        theirs={"loss_type": "aot"},
    ),
    Case("dpo", "two-losses", options={"loss_type": ["sigmoid", "ipo"], "loss_weights": [0.7, 0.01]}),
    Case("dpo", "beta", options={"beta": 0.6}),
    Case("dpo", "accumulation", options=TWO_OF_TWO),
    Case("dpo", "checkpointing", options={"gradient_checkpointing": True}),
    Case("dpo", "cut", options={"max_length": 10}),
    Case("dpo", "cut-beginning", options={"max_length": 10, "truncation_mode": "keep_end"}),
    Case("dpo", "multiple", options={"pad_to_multiple_of": 8}),
    Case("dpo", "precomputed", options={"precompute_ref_log_probs": True}, reference=True),
    Case("dpo", "reference", reference=True),
    Case("dpo", "new-adapter", adapter="new"),
    Case("dpo", "old-adapter", adapter="old"),
    Case("dpo", "no-prompt", rows="no-prompt"),
    Case("dpo", "messages", rows="messages"),
    Case("reward", "plain"),
    Case("reward", "margin", rows="margin"),
    Case("reward", "centred", options={"center_rewards_coefficient": 0.3}),
    Case("reward", "accumulation", options=TWO_OF_TWO),
    Case("reward", "checkpointing", options={"gradient_checkpointing": True}),
    Case("reward", "left-out", options={"max_length": 12}),
    Case("reward", "multiple", options={"pad_to_multiple_of": 8}),
    Case("reward", "new-adapter", adapter="new"),
    Case("reward", "no-prompt", rows="no-prompt"),
    Case("reward", "messages", rows="messages"),
    Case("reward", "tokens", rows="tokens"),
    Case("reward", "end-token-pads", options={"pad_token": "<eos>"}),
]


def make_rows(kind: str, count: int = 40) -> list[dict[str, Any]]:
    """Rows of a kind, of random words, the same every time."""
    rng = random.Random(kind)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{rng.randrange(6, 64)}" for _ in range(rng.randint(least, most)))

    def row() -> dict[str, Any]:
        prompt, chosen, rejected = words(1, 8), words(2, 8) + " ", words(2, 8) + " "
        if kind == "messages":
            turns = [
                [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
                for answer in (chosen, rejected)
            ]
            return {"chosen": turns[0], "rejected": turns[1]}
        if kind == "no-prompt":
            return {"chosen": f"{prompt} w7 {chosen}", "rejected": f"{prompt} w8 {rejected}"}
        if kind == "tokens":
            return {
                side: [rng.randrange(4, 64) for _ in range(rng.randint(2, 12))]
                for side in ("chosen_ids", "rejected_ids")
            }
        margin = {"margin": rng.random()} if kind == "margin" else {}
        return {"prompt": prompt + " ", "chosen": chosen, "rejected": rejected} | margin

    return [row() for _ in range(count)]


def load_models(case: Case, folder: Path) -> tuple[torch.nn.Module, dict[str, torch.nn.Module]]:
    """The model that is trained, and the reference as a keyword, from the folder of one family's models."""
    if case.stage == "reward":
        model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
        return model, {}
    model = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    if case.adapter == "old":
        model = PeftModel.from_pretrained(model, folder / "adapter", is_trainable=True)
    if not case.reference:
        return model, {}
    return model, {
        "ref_model": AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32)
    }


def peft_config(case: Case) -> LoraConfig | None:
    """An adapter on some layers; both sides seed it alike."""
    if case.adapter != "new":
        return None
    task = {"dpo": "CAUSAL_LM", "reward": "SEQ_CLS"}[case.stage]
    return LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type=task)
