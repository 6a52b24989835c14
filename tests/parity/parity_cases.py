"""What both trainers are given: tiny models, rollouts with every way to end, and the options of each case."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import NamedTuple

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

VOCABULARY, PAD, EOS, FIRST_WORD = 64, 0, 1, 4
OTHER_STOP = FIRST_WORD
STEPS, ROWS, PROMPT, RESPONSE = 2, 8, 6, 7
LENGTHS = (1, 2, 4, RESPONSE - 1, RESPONSE, None, None, 3)  # None: never ends
PROMPT_LENGTHS = (6, 1, 3, 5, 2, 6, 4, 3)

COMMON = {
    "per_device_train_batch_size": ROWS,
    "gradient_accumulation_steps": 1,
    "num_mini_batches": 1,
    "num_ppo_epochs": 3,
    "total_episodes": STEPS * ROWS,
    "response_length": RESPONSE,
    "local_rollout_forward_batch_size": 3,
    "temperature": 0.7,
    "kl_coef": 0.1,
    "gamma": 0.98,
    "vf_coef": 0.5,
    "learning_rate": 1e-3,
    "weight_decay": 0.1,
    "adam_epsilon": 1e-3,  # the usual 1e-8 turns rounding noise in gradients that are zero into whole steps
    "max_grad_norm": 0.0,
    "num_sample_generations": 0,
    "gradient_checkpointing": False,
    "bf16": False,
    "use_cpu": True,
    "report_to": [],
    "save_strategy": "no",
    "disable_tqdm": True,
}


@dataclass(frozen=True)
class Case:
    """One run of both trainers. Responses end "early", "never", or "other" (early, at a stop_token_id)."""

    family: str
    ends: str
    options: dict = field(default_factory=dict)
    name: str = ""
    adapter: bool = False  # the policy is a LoRA adapter on its base, and the base is the reference

    @property
    def id(self) -> str:
        return f"{self.family}-{self.ends}-{self.name}"

    @property
    def arguments(self) -> dict:
        """Arguments of PPOConfig, the same for both."""
        stop = {"early": {"stop_token": "eos"}, "never": {}, "other": {"stop_token_id": OTHER_STOP}}
        return COMMON | stop[self.ends] | self.options


def _matrix(families: tuple[str, ...]) -> list[Case]:
    cases = []
    for family, ends, penalty, whiten, kl in product(
        families, ("early", "never"), (None, 1.5), (False, True), ("k1", "k3")
    ):
        name = "-".join(
            [kl, *(["whitened"] if whiten else []), *(["penalty"] if penalty is not None else [])]
        )
        options = {"missing_eos_penalty": penalty, "whiten_rewards": whiten, "kl_estimator": kl}
        cases.append(Case(family, ends, options, name))
    return cases


ACCUMULATION = {"per_device_train_batch_size": ROWS // 2, "gradient_accumulation_steps": 2}
CASES = [
    *_matrix(("llama", "gpt2")),
    Case("llama", "early", {"gradient_checkpointing": True}, "checkpointing"),
    Case("llama", "other", {"missing_eos_penalty": 1.5}, "penalty"),
    Case("llama", "never", ACCUMULATION, "accumulation"),
    Case("llama", "early", {}, "adapter", adapter=True),
]


def make_models(folder: Path) -> None:
    """Policy (and its tokenizer), adapter, reference, reward and value model under `folder/<family>/`."""
    configs = {
        "llama": LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            initializer_range=0.15,
        ),
        "gpt2": GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64, initializer_range=0.15
        ),
    }
    for seed, (family, config) in enumerate(configs.items()):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            config.pad_token_id, config.eos_token_id, config.bos_token_id = PAD, EOS, None
            policy = AutoModelForCausalLM.from_config(config)
            policy.save_pretrained(folder / family / "policy")
            with torch.no_grad():
                for parameter in policy.parameters():
                    parameter += 0.03 * torch.randn_like(parameter)
            policy.save_pretrained(folder / family / "reference")
            config.num_labels = 1
            for role in ("reward", "value"):
                model = AutoModelForSequenceClassification.from_config(config)
                model.save_pretrained(folder / family / role)
            if family == "llama":
                adapted = get_peft_model(policy, LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
                for name, parameter in adapted.named_parameters():
                    if "lora_" in name:
                        torch.nn.init.normal_(parameter, std=0.2)
                adapted.save_pretrained(folder / family / "adapter")
        make_tokenizer().save_pretrained(folder / family / "policy")


class Models(NamedTuple):
    """What a trainer is given."""

    policy: torch.nn.Module
    reference: torch.nn.Module | None
    reward: torch.nn.Module
    value: torch.nn.Module
    tokenizer: PreTrainedTokenizerFast


def load_models(folder: Path, adapter: bool) -> Models:
    """The models of one family, in float32."""
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder / role, dtype=torch.float32)
        for role in ("policy", "reference")
    )
    if adapter:
        policy, reference = PeftModel.from_pretrained(policy, folder / "adapter", is_trainable=True), None
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(folder / role, dtype=torch.float32)
        for role in ("reward", "value")
    )
    return Models(policy, reference, reward, value, AutoTokenizer.from_pretrained(folder / "policy"))


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One word a token: `w4` is token 4."""
    words = {f"w{index}": index for index in range(FIRST_WORD, VOCABULARY)}
    tokens = {"<pad>": PAD, "<eos>": EOS, "<unk>": 2, "<bos>": 3} | words
    backend = Tokenizer(WordLevel(tokens, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )


def make_rollouts(ends: str) -> dict[str, torch.Tensor]:
    """`prompts` `[STEPS, ROWS, PROMPT]`, ragged; `responses` `[STEPS, ROWS, RESPONSE]`, padded at ends."""
    generator = torch.Generator().manual_seed(7)
    prompts = torch.randint(OTHER_STOP + 1, VOCABULARY, (STEPS, ROWS, PROMPT), generator=generator)
    responses = torch.randint(OTHER_STOP + 1, VOCABULARY, (STEPS, ROWS, RESPONSE), generator=generator)
    for step in range(STEPS):
        for row, length in enumerate(PROMPT_LENGTHS):
            prompts[step, row, : PROMPT - length] = PAD
        order = torch.randperm(ROWS, generator=generator)
        for row, length in zip(order.tolist(), LENGTHS, strict=True):
            if ends != "never" and length is not None:
                responses[step, row, length - 1] = EOS if ends == "early" else OTHER_STOP
                responses[step, row, length:] = PAD
        if ends != "early":
            responses[step, order[6], 2] = EOS  # does not end the response, but counts as an end token
    return {"prompts": prompts, "responses": responses}
