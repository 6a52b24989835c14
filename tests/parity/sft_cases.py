"""What both trainers of supervised fine-tuning are given: rows, a chat template and the options of each case."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from parity_cases import make_tokenizer
from peft import LoraConfig

STEPS = 3
COMMON = {
    "per_device_train_batch_size": 4,
    "max_steps": STEPS,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "adam_epsilon": 1e-3,  # the usual 1e-8 turns rounding noise in gradients that are zero into whole steps
    "logging_steps": 1,
    "max_length": 48,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'assistant' %}w5 {% generation %}{{ m.content }} <eos>{% endgeneration %} "
    "{% else %}w4 {{ m.content }} {% endif %}{% endfor %}{% if add_generation_prompt %}w5 {% endif %}"
)


@dataclass(frozen=True)
class Case:
    """One run of both trainers."""

    id: str
    rows: str = "text"
    options: dict[str, Any] = field(default_factory=dict)
    adapter: bool = False

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of SFTConfig, the same for both."""
        return COMMON | self.options


CASES = [
    Case("text"),
    Case("text-accumulation", options={"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}),
    Case("text-checkpointing", options={"gradient_checkpointing": True}),
    Case("text-cut", options={"max_length": 8}),
    Case("text-dft", options={"loss_type": "dft"}),
    Case("text-padding-free", options={"padding_free": True, "max_length": None}),
    Case("text-packed", options={"packing": True, "per_device_train_batch_size": 2}),
    Case("text-packed-split", options={"packing": True, "packing_strategy": "bfd_split", "max_length": 12}),
    Case("text-wrapped", options={"packing": True, "packing_strategy": "wrapped", "max_length": 12}),
    Case("text-shuffled", options={"shuffle_dataset": True}),
    Case("text-multiple", options={"pad_to_multiple_of": 8}),
    Case("text-adapter", adapter=True),
    Case("completion", rows="completion"),
    Case("completion-all", rows="completion", options={"completion_only_loss": False}),
    Case("messages", rows="messages"),
    Case("messages-assistant", rows="messages", options={"assistant_only_loss": True}),
    Case("messages-completion", rows="messages-completion"),
    Case("tokens", rows="tokens"),
]


def make_rows(kind: str, count: int = 40) -> list[dict[str, Any]]:
    """Rows of a kind, of random words, the same every time."""
    rng = random.Random(kind)

    def words(least: int, most: int) -> str:
        return " ".join(f"w{rng.randrange(6, 64)}" for _ in range(rng.randint(least, most)))

    def turns(number: int) -> list[dict[str, str]]:
        return [
            {"role": role, "content": words(1, 5)} for _ in range(number) for role in ("user", "assistant")
        ]

    def row() -> dict[str, Any]:
        if kind == "text":
            return {"text": words(2, 20) + " "}
        if kind == "completion":
            return {"prompt": words(1, 8) + " ", "completion": words(1, 8) + " "}
        if kind == "messages":
            return {"messages": turns(rng.randint(1, 3))}
        if kind == "messages-completion":
            said = turns(rng.randint(1, 3))
            return {"prompt": said[:-1], "completion": said[-1:]}
        tokens = [rng.randrange(4, 64) for _ in range(rng.randint(2, 20))]
        return {"input_ids": tokens, "completion_mask": [int(at > 2) for at in range(len(tokens))]}

    return [row() for _ in range(count)]


def tokenizer():
    """The tokenizer of both sides."""
    made = make_tokenizer()
    made.padding_side, made.chat_template = "right", TEMPLATE
    return made


def peft_config(case: Case) -> LoraConfig | None:
    """An adapter on some layers; both sides seed it alike."""
    targets = ["q_proj", "down_proj"]
    return LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM") if case.adapter else None
