"""Models, tokenizer, prompts and trainers so small that a training step takes a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from fastrlhf import PPOConfig, PPOTrainer

VOCABULARY = 32
EOS, PAD, UNKNOWN = VOCABULARY - 3, VOCABULARY - 2, VOCABULARY - 1
WORDS = EOS
CONTEXT = 64
WIDTH = 16


def tiny_tokenizer(**overrides: Any) -> PreTrainedTokenizerFast:
    """Word-level: the words t0, t1, ... are the tokens 0, 1, ...; then <eos>, <pad> and <unk>.

    Args:
        overrides: for `PreTrainedTokenizerFast`; `pad_token=None` gives a tokenizer without one.
    """
    words = {f"t{token}": token for token in range(WORDS)}
    words |= {"<eos>": EOS, "<pad>": PAD, "<unk>": UNKNOWN}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    named = {"eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>", **overrides}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="left", **named)


def llama_config(**overrides: Any) -> LlamaConfig:
    """Two layers, grouped-query attention."""
    options = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": CONTEXT,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": None,
    }
    return LlamaConfig(**{**options, **overrides})


def gpt2_config(**overrides: Any) -> GPT2Config:
    """Two layers, learned positions, tied embeddings, dropout in the configuration."""
    options = {
        "vocab_size": VOCABULARY,
        "n_embd": WIDTH,
        "n_layer": 2,
        "n_head": 4,
        "n_positions": CONTEXT,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": None,
    }
    return GPT2Config(**{**options, **overrides})


def tiny_llama(seed: int = 0, **overrides: Any) -> LlamaForCausalLM:
    """A Llama-shaped causal language model."""
    return _seeded(seed, lambda: LlamaForCausalLM(llama_config(**overrides)))


def tiny_gpt2(seed: int = 0, **overrides: Any) -> GPT2LMHeadModel:
    """A GPT-2-shaped causal language model."""
    return _seeded(seed, lambda: GPT2LMHeadModel(gpt2_config(**overrides)))


def tiny_llama_classifier(seed: int = 1, **overrides: Any) -> LlamaForSequenceClassification:
    """A Llama-shaped critic or reward model, one number a sequence."""
    config = llama_config(num_labels=1, **overrides)
    return _seeded(seed, lambda: LlamaForSequenceClassification(config))


def tiny_gpt2_classifier(seed: int = 1, **overrides: Any) -> GPT2ForSequenceClassification:
    """A GPT-2-shaped critic or reward model, one number a sequence."""
    config = gpt2_config(num_labels=1, **overrides)
    return _seeded(seed, lambda: GPT2ForSequenceClassification(config))


def tiny_prompts(rows: int = 16, seed: int = 0, longest: int = 5) -> Dataset:
    """Prompts of 2 to `longest` random words, as `input_ids`."""
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(2, longest + 1, (rows,), generator=random).tolist()
    return Dataset.from_dict(
        {"input_ids": [torch.randint(0, WORDS, (n,), generator=random).tolist() for n in lengths]}
    )


def tiny_reward(prompts: list[str], completions: list[str]) -> list[float]:
    """The share of small words in each completion."""
    return [
        sum(int(word[1:]) < WORDS // 2 for word in completion.split()) / max(1, len(completion.split()))
        for completion in completions
    ]


def tiny_config(output_dir: Any, **overrides: Any) -> PPOConfig:
    """Four steps of eight prompts, one epoch each, nothing reported, no checkpoint unless asked for."""
    options = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 8,
        "num_ppo_epochs": 1,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "response_length": 6,
        "stop_token": "eos",
        "temperature": 1.0,
        "total_episodes": 32,
        "num_sample_generations": 0,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "seed": 7,
    }
    return PPOConfig(**{**options, **overrides})


def tiny_trainer(output_dir: Any, **overrides: Any) -> PPOTrainer:
    """A trainer of a tiny Llama on `tiny_reward`.

    Args:
        output_dir: where its run goes.
        overrides: arguments of `PPOTrainer` by name, or `trainer_class`; the others go to `tiny_config`.
    """
    arguments = {
        "processing_class": tiny_tokenizer,
        "model": tiny_llama,
        "ref_model": lambda: None,
        "reward_model": lambda: tiny_reward,
        "train_dataset": tiny_prompts,
        "value_model": lambda: None,
        "data_collator": lambda: None,
        "eval_dataset": lambda: None,
        "optimizers": lambda: (None, None),
        "callbacks": lambda: None,
        "peft_config": lambda: None,
        "pretrain_dataset": lambda: None,
    }
    given = {name: overrides.pop(name) for name in tuple(overrides) if name in arguments}
    made = {name: given[name] if name in given else make() for name, make in arguments.items()}
    trainer_class = overrides.pop("trainer_class", PPOTrainer)
    return trainer_class(args=tiny_config(output_dir, **overrides), **made)


def _seeded(seed: int, make: Callable[[], nn.Module]) -> Any:
    """A model with the weights that a seed decides; the global generator stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make()
