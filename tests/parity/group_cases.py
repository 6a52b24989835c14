"""What both sides of a GRPO or RLOO comparison are given: prompts, completions of every length, options and rewards."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from parity_cases import EOS, FIRST_WORD, VOCABULARY
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

ROLLOUTS, PROMPTS, GROUP, LONGEST = 3, 3, 4, 7
ROWS = PROMPTS * GROUP
LENGTHS = (1, 2, 4, LONGEST - 1, LONGEST, None, None, 3, 5, None, 2, 6)  # None: never ends

COMMON = {
    "per_device_train_batch_size": ROWS,
    "gradient_accumulation_steps": 1,
    "num_generations": GROUP,
    "max_completion_length": LONGEST,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "adam_epsilon": 1e-3,  # the usual 1e-8 turns rounding noise in gradients that are zero into whole steps
    "shuffle_dataset": False,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Case:
    """One run of both trainers; the reference is another model where there is one, but for an adapter.

    `even` prompts are of one length: TRL counts padding as positions, which a model with absolute ones sees.
    """

    trainer: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    rewards: tuple[str, ...] = ("word_sum",)
    family: str = "llama"
    adapter: bool = False
    even: bool = False

    @property
    def id(self) -> str:
        return f"{self.trainer}-{self.name}"

    @property
    def updates(self) -> int:
        """Optimizer updates of one rollout."""
        minibatches = self.options.get("steps_per_generation", 1)
        if "gradient_accumulation_steps" in self.options:
            minibatches = 1
        return self.options.get("num_iterations", 1) * minibatches

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the configuration, the same for both; a log for each rollout."""
        steps = {"max_steps": ROLLOUTS * self.updates, "logging_steps": self.updates}
        return COMMON | steps | self.options


HALVES = {"per_device_train_batch_size": ROWS // 2}
KL = {"beta": 0.1}
TWICE = {"num_iterations": 2, "learning_rate": 1e-2}
GRPO = [
    Case("grpo", "default"),
    Case("grpo", "gpt2", {"disable_dropout": True, **KL}, family="gpt2", even=True),
    Case("grpo", "temperature", {"temperature": 0.7, **KL}),
    *(Case("grpo", kind, {"loss_type": kind, **KL}) for kind in ("grpo", "dr_grpo", "bnpo", "dapo")),
    Case("grpo", "gspo", {"loss_type": "grpo", "importance_sampling_level": "sequence", **TWICE}),
    Case("grpo", "gspo-kl", {"loss_type": "dapo", "importance_sampling_level": "sequence", **TWICE, **KL}),
    Case("grpo", "luspo", {"loss_type": "luspo", "importance_sampling_level": "sequence", **TWICE}),
    Case("grpo", "plain-kl", {"use_bias_correction_kl": False, **KL, **TWICE}),
    Case("grpo", "twice", {**TWICE, **KL}),
    Case("grpo", "clips", {"epsilon": 0.02, "epsilon_high": 0.03, "delta": 1.1, **TWICE}),
    Case("grpo", "minibatches", {"steps_per_generation": 2, **HALVES}),
    Case("grpo", "accumulation", {"gradient_accumulation_steps": 2, **HALVES, **KL}),
    Case("grpo", "accumulated-grpo", {"gradient_accumulation_steps": 2, "loss_type": "grpo", **HALVES}),
    Case("grpo", "batch-scale", {"scale_rewards": "batch"}),
    Case("grpo", "no-scale", {"scale_rewards": "none"}),
    Case("grpo", "truncated", {"mask_truncated_completions": True, "loss_type": "grpo", **KL}),
    Case("grpo", "high-entropy", {"top_entropy_quantile": 0.4}),
    Case("grpo", "high-entropy-gspo", {"top_entropy_quantile": 0.4, "importance_sampling_level": "sequence"}),
    Case("grpo", "bonus", {"entropy_coef": 0.05, "loss_type": "grpo"}),
    Case(
        "grpo", "steered-bonus", {"entropy_coef": 0.05, "use_adaptive_entropy": True, "entropy_target": 4.0}
    ),
    Case("grpo", "off-policy-mask", {"off_policy_mask_threshold": 1e-3, **TWICE}),
    Case("grpo", "weights", {"reward_weights": [0.5, 2.0]}, ("word_sum", "sometimes")),
    Case("grpo", "decoupled", {"multi_objective_aggregation": "normalize_then_sum"}, ("word_sum", "length")),
    Case("grpo", "model", {}, ("model", "length")),
    Case("grpo", "silent", {}, ("sometimes",)),
    Case("grpo", "moving-reference", {"sync_ref_model": True, "ref_model_sync_steps": 2, **KL}),
    Case("grpo", "adapter", KL, adapter=True),
]
RLOO = [
    Case("rloo", "default"),
    Case("rloo", "without-kl", {"beta": 0.0}),
    Case("rloo", "clipped-rewards", {"reward_clip_range": (0.2, 1.0)}),
    Case("rloo", "normalised", {"normalize_advantages": True}),
    Case("rloo", "twice", {**TWICE, "epsilon": 0.02, "epsilon_high": 0.05}),
    Case("rloo", "accumulation", {"gradient_accumulation_steps": 2, **HALVES}),
    Case("rloo", "truncated", {"mask_truncated_completions": True}),
    Case("rloo", "weights", {"reward_weights": [0.5, 2.0]}, ("word_sum", "sometimes")),
    Case("rloo", "silent", {}, ("sometimes",)),
    Case("rloo", "adapter", {}, adapter=True),
]
CASES = [*GRPO, *RLOO]


def word_sum(prompts, completions, completion_ids, number, **kwargs):
    """A function of the tokens and of another column of the dataset."""
    return [(sum(ids) + 3 * column) % 11 / 10 for ids, column in zip(completion_ids, number, strict=True)]


def sometimes(completions, completion_ids, **kwargs):
    """Nothing to say of every third completion."""
    return [None if sum(ids) % 3 == 0 else len(ids) / 7 for ids in completion_ids]


def length(completions, **kwargs):
    """How many words."""
    return [float(len(completion.split())) for completion in completions]


def load_rewards(case: Case, folder: Path) -> dict[str, Any]:
    """The trainer's arguments about rewards."""
    known = {"word_sum": word_sum, "sometimes": sometimes, "length": length}
    functions, tokenizers = [], []
    for name in case.rewards:
        if name == "model":
            model = AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
            functions.append(model.eval())
            tokenizers.append(AutoTokenizer.from_pretrained(folder / "policy"))
        else:
            functions.append(known[name])
            tokenizers.append(None)
    return {"reward_funcs": functions, "reward_processing_classes": tokenizers}


def load_policy(folder: Path) -> torch.nn.Module:
    """In float32."""
    return AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)


def adapter_config() -> LoraConfig:
    """An adapter that is not nothing to begin with."""
    return LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)


@torch.no_grad()
def move_reference(trainer: Any, folder: Path) -> None:
    """Make the reference another model than the policy's beginning."""
    if trainer.ref_model is not None:
        other = AutoModelForCausalLM.from_pretrained(folder / "reference", dtype=torch.float32)
        trainer.ref_model.load_state_dict(other.state_dict())


def make_prompts(even: bool) -> list[dict[str, Any]]:
    """One row a prompt, of one to five words, or all of three."""
    random = torch.Generator().manual_seed(7)
    rows = []
    for row in range(ROLLOUTS * PROMPTS):
        words = torch.randint(FIRST_WORD, VOCABULARY, (3 if even else 1 + row % 5,), generator=random)
        rows.append({"prompt": " ".join(f"w{word}" for word in words.tolist()), "number": row})
    return rows


def make_completions() -> list[list[list[int]]]:
    """Tokens of each completion of each rollout."""
    random = torch.Generator().manual_seed(8)
    rollouts = []
    for _ in range(ROLLOUTS):
        order = torch.randperm(ROWS, generator=random).tolist()
        tokens = torch.randint(FIRST_WORD, VOCABULARY, (ROWS, LONGEST), generator=random).tolist()
        rollouts.append(
            [
                tokens[row] if LENGTHS[place] is None else [*tokens[row][: LENGTHS[place] - 1], EOS]
                for row, place in enumerate(order)
            ]
        )
    return rollouts


def default(item: dataclasses.Field) -> str:
    """What a field of a configuration is if it is not given."""
    return "" if item.default is dataclasses.MISSING else repr(item.default)
