"""Models, tokenizers and prompts of the comparisons: both sides build them from the same files and seeds."""

from __future__ import annotations

from dataclasses import dataclass
from math import log
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

PAD, EOS, STOP = 0, 1, 2  # of the random models
TEMPERATURE = 0.7  # TRL's default
SMOLLM2_STOP = (
    ","  # 192 responses to reviews' beginnings have 24.9 of 48 tokens up to the first (deviation 17)
)


@dataclass(frozen=True)
class Shape:
    """A model and the batch that it is trained on.

    Attributes:
        rows, prompt, response: sequences of a step, tokens of a prompt, longest response.
        config: of a Llama with random weights, or None for SmolLM2-135M's own weights.
    """

    rows: int
    prompt: int
    response: int
    config: dict[str, int] | None


SHAPES = {
    "17m": Shape(
        rows=16,
        prompt=32,
        response=64,
        config={
            "vocab_size": 50_304,
            "hidden_size": 256,
            "intermediate_size": 688,
            "num_hidden_layers": 5,
            "num_attention_heads": 8,
            "num_key_value_heads": 8,
            "max_position_embeddings": 512,
        },
    ),
    "smollm2": Shape(rows=8, prompt=16, response=48, config=None),
    "tiny": Shape(
        rows=4,
        prompt=5,
        response=6,
        config={
            "vocab_size": 96,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 64,
        },
    ),
}


def policy_and_tokenizer(name: str, *, ending: bool) -> tuple[nn.Module, Any]:
    """The policy in float32, with its tokenizer.

    Args:
        name: of a shape.
        ending: make the stop token so likely in every state that responses end at about half of their length. Only
            for random weights: SmolLM2's text has its stop token about that often by itself.
    """
    shape = SHAPES[name]
    if shape.config is None:
        from fastrlhf.demo.model import load_policy

        return load_policy()
    torch.manual_seed(0)
    config = LlamaConfig(
        **shape.config, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None, tie_word_embeddings=True
    )
    policy = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if ending:
        make_stop_likely(policy, stop_probability(shape.response))
    return policy.eval(), _tokenizer(config.vocab_size)


def scalar_model(name: str, *, seed: int) -> nn.Module:
    """A model with a head of width one, as a reward or value model: for SmolLM2 on its weights, else random."""
    from fastrlhf.demo.quiet import quiet_loading

    torch.manual_seed(seed)
    shape = SHAPES[name]
    if shape.config is None:
        from fastrlhf.demo.model import policy_folder

        with quiet_loading():
            model = AutoModelForSequenceClassification.from_pretrained(
                policy_folder(), num_labels=1, dtype=torch.float32, local_files_only=True
            )
    else:
        config = LlamaConfig(
            **shape.config, pad_token_id=PAD, eos_token_id=EOS, bos_token_id=None, num_labels=1
        )
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.score = score_head(model.config, seed)
    return model.eval()


def scalar_model_on(policy: nn.Module, *, seed: int) -> nn.Module:
    """A model with a head of width one on the policy's own tensors: no weight is held twice.

    For SmolLM2 it computes what `scalar_model` does. Its layers are modules of their own, so that adapters on the
    policy's do not reach them.
    """
    config = type(policy.config)(**{**policy.config.to_dict(), "num_labels": 1})
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(config, dtype=torch.float32)
    model.model.load_state_dict(policy.model.state_dict(), assign=True)
    model.model.rotary_emb = policy.model.rotary_emb  # its frequencies are no part of a state dict
    model.score = score_head(config, seed)
    return model.eval()


def score_head(config: Any, seed: int) -> nn.Linear:
    """A head of width one, drawn from the seed alone, as transformers initialises it."""
    head = nn.Linear(config.hidden_size, 1, bias=False)
    nn.init.normal_(head.weight, std=config.initializer_range, generator=torch.Generator().manual_seed(seed))
    return head


def stop_token_id(name: str, tokenizer: Any) -> int:
    """The token at which responses end in the mode `eos`."""
    return STOP if SHAPES[name].config is not None else tokenizer.convert_tokens_to_ids(SMOLLM2_STOP)


def prompts(name: str, count: int, tokenizer: Any) -> list[list[int]]:
    """`count` prompts of exactly the shape's length: beginnings of reviews for SmolLM2, else random tokens."""
    shape = SHAPES[name]
    if shape.config is None:
        from fastrlhf.demo.prompts import review_prompts

        texts = review_prompts(count, seed=0, words=shape.prompt)  # a word has at least one token
        return [tokenizer(text)["input_ids"][: shape.prompt] for text in texts]
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(STOP + 1, shape.config["vocab_size"], (count, shape.prompt), generator=generator)
    return tokens.tolist()


def stop_probability(longest: int) -> float:
    """The chance of ending at each token with which responses of at most `longest` tokens have half of that on average.

    The mean of a geometric distribution cut at n is (1 - (1 - p)^n) / p; p is found by bisection.
    """
    low, high = 1e-6, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        if (1 - (1 - middle) ** longest) / middle > longest / 2:
            low = middle
        else:
            high = middle
    return low


@torch.no_grad()
def make_stop_likely(policy: nn.Module, probability: float) -> None:
    """Give STOP about this probability at TEMPERATURE in every state, by weights alone.

    All embeddings get a direction in common, which the residual stream carries to the head; the head's row of STOP
    reads it. The head is untied for that. A trainer sees an ordinary Llama.
    """
    embedding = policy.get_input_embeddings().weight
    vocabulary, width = embedding.shape
    head = nn.Linear(width, vocabulary, bias=False)
    head.weight.copy_(embedding)
    direction = torch.nn.functional.normalize(torch.randn(width), dim=0)
    head.weight -= (head.weight @ direction)[:, None] * direction
    embedding += 4 * embedding.norm(dim=1).mean() * direction
    policy.lm_head, policy.config.tie_word_embeddings = head, False
    tokens = torch.arange(min(vocabulary, 256))[:, None]
    hidden = policy.model(input_ids=tokens).last_hidden_state[:, 0]
    others = (hidden @ head.weight.T / TEMPERATURE).logsumexp(dim=1).mean()
    wanted = TEMPERATURE * (log(probability / (1 - probability)) + others)
    head.weight[STOP] = wanted / (hidden @ direction).mean() * direction


def _tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """One word a token: `w7` is token 7."""
    words = {"<pad>": PAD, "<eos>": EOS} | {f"w{index}": index for index in range(STOP, vocabulary)}
    backend = Tokenizer(WordLevel(words, unk_token="<eos>"))
    backend.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<eos>",  # CTranslate2's files need a name for these two, which no text holds
        unk_token="<eos>",
        padding_side="left",
    )
