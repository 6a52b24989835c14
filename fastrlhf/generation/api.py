"""The generator for people: prompts in, completions out, all at once or as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fastrlhf.generation.request import Event, Request
from fastrlhf.generation.run import run
from fastrlhf.generation.settings import Settings
from fastrlhf.generation.text import ResponseText
from fastrlhf.models.backbone import end_tokens, evaluation_mode

Prompts = str | Sequence[str] | Sequence[Sequence[int]] | torch.Tensor


class Completion(NamedTuple):
    """One response.

    Attributes:
        tokens: a stop token among them, if one ended it.
        text: what they decode to, up to the stop string if one ended it; None without a tokenizer.
        logprobs, entropy: of each token, under the tempered distribution before any filter, in nats.
        finish_reason: "stop" or "length".
    """

    tokens: list[int]
    text: str | None
    logprobs: list[float]
    entropy: list[float]
    finish_reason: str


def generate(
    model: nn.Module,
    prompts: Prompts,
    *,
    tokenizer: Any = None,
    attention_mask: torch.Tensor | None = None,
    max_new_tokens: int | Sequence[int] = 128,
    num_samples: int = 1,
    stop_token_ids: Sequence[int] | None = None,
    stop_strings: Sequence[str] = (),
    seed: int | Sequence[int] = 0,
    batch_size: int | None = None,
    cache_bytes: int | None = None,
    weights: str | None = None,
    stream: bool = False,
    **settings: Any,
) -> list[Completion] | Iterator[Event]:
    """Sample completions from a language model.

    Rows come and go: one that ends makes room at once for the next that waits. A row draws the same random numbers in
    any batch, and on a CPU in float32 it gives the same tokens, to the bit of their log-probabilities.

    Args:
        model: a Hugging Face causal language model, or a PEFT model around one, in evaluation mode or not. Llama
            (SmolLM too), Mistral, Qwen2, Qwen3, Gemma, GPT-2 and GPT-NeoX run on our kernels and read the model's own
            weights; others generate with their own forward, with a notice.
        prompts: texts (which need a `tokenizer`), lists of token ids, or token ids `[B, P]` padded on either side.
        tokenizer: of the model; completions then have their text.
        attention_mask: `[B, P]`, the real tokens of padded prompts.
        max_new_tokens: length at which a completion ends anyway; one number, or one a prompt.
        num_samples: completions of each prompt; its keys and values are computed once.
        stop_token_ids: tokens that end a completion (and are its last); None: those of `model.generation_config`.
        stop_strings: texts that end a completion, and are not part of its text; they need a `tokenizer`.
        seed: of the random numbers; one number, or one a prompt.
        batch_size: the most rows that are generated at a time; all where None.
        cache_bytes: the most that keys and values may take; fewer rows are generated at a time where it is little.
        weights: "int8" computes with copies of the weights in 8 bits, made now, about a quarter of their bytes.
        stream: return an iterator of `Event` (request, token, text, finished) instead.
        settings: min_new_tokens (0), temperature (1.0; 0 takes the most probable token), top_k (0: all), top_p (1.0),
            min_p (0.0), repetition_penalty (1.0); see `fastrlhf.kernels.sample`.

    Returns:
        Completions, those of one prompt side by side: number `i num_samples + j` is the j-th of prompt i.

    Raises:
        ValueError: no prompts, an empty one, one too long for the model's context, settings that cannot be meant, or
            a cache in which not even one sequence fits.
        FloatingPointError: a row's logits are NaN; the message names the row, the step and the layer.
    """
    token_lists = _token_lists(prompts, tokenizer, attention_mask)
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}, expected at least 1")
    if stop_strings and tokenizer is None:
        raise ValueError("stop_strings need a tokenizer to read the completions with")
    ends = end_tokens(model) if stop_token_ids is None else tuple(stop_token_ids)
    most, seeds = (
        _of_each(name, given, len(token_lists))
        for name, given in (("max_new_tokens", max_new_tokens), ("seed", seed))
    )
    requests = []
    for number, prompt in enumerate(token_lists):
        of_prompt = Settings(
            most[number],
            stop_token_ids=ends,
            stop_strings=tuple(stop_strings),
            seed=seeds[number],
            **settings,
        )
        for _ in range(num_samples):
            text = None if tokenizer is None else ResponseText(tokenizer, of_prompt.stop_strings)
            requests.append(Request(len(requests), prompt, len(requests), of_prompt, text))
    max_rows = max(1, len(requests)) if batch_size is None else batch_size
    options = {"max_rows": max_rows, "cache_bytes": cache_bytes, "weights": weights}
    events = _in_evaluation_mode(model, requests, options)
    if stream:
        return events
    for _ in events:
        pass
    return [_completion(request) for request in requests]


def _in_evaluation_mode(
    model: nn.Module, requests: list[Request], options: dict[str, Any]
) -> Iterator[Event]:
    with evaluation_mode(model):
        yield from run(model, requests, **options)


def _completion(request: Request) -> Completion:
    text = None if request.text is None else request.text.text
    return Completion(request.tokens, text, request.logprobs, request.entropy, request.finish_reason)


def _token_lists(
    prompts: Prompts, tokenizer: Any, attention_mask: torch.Tensor | None
) -> list[tuple[int, ...]]:
    if isinstance(prompts, torch.Tensor):
        return _unpadded(prompts, attention_mask)
    if attention_mask is not None:
        raise ValueError("attention_mask is given, but prompts are not a tensor")
    prompts = [prompts] if isinstance(prompts, str) else list(prompts)
    if not any(isinstance(prompt, str) for prompt in prompts):
        return [tuple(map(int, prompt)) for prompt in prompts]
    if tokenizer is None:
        raise ValueError("prompts are texts, which need a tokenizer")
    return [tuple(tokenizer(prompt)["input_ids"]) for prompt in prompts]


def _unpadded(prompts: torch.Tensor, attention_mask: torch.Tensor | None) -> list[tuple[int, ...]]:
    if prompts.dim() != 2 or prompts.is_floating_point():
        raise ValueError(
            f"prompts has shape {list(prompts.shape)} and {prompts.dtype}, expected token ids [B, P]"
        )
    mask = torch.ones_like(prompts).bool() if attention_mask is None else attention_mask.bool()
    if mask.shape != prompts.shape:
        raise ValueError(
            f"attention_mask has shape {list(mask.shape)}, expected that of prompts: {list(prompts.shape)}"
        )
    return [tuple(row[kept].tolist()) for row, kept in zip(prompts.cpu(), mask.cpu(), strict=True)]


def _of_each(name: str, given: int | Sequence[int], prompts: int) -> list[int]:
    if isinstance(given, int):
        return [given] * prompts
    if len(given) != prompts:
        raise ValueError(f"{name} has {len(given)} numbers, expected one or as many as prompts: {prompts}")
    return list(given)
