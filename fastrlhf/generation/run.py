"""Runs requests on the engine that serves the model."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator

from torch import nn

from fastrlhf.generation.engine import Engine
from fastrlhf.generation.fallback import run_fallback
from fastrlhf.generation.offloaded import weights_at_hand
from fastrlhf.generation.request import Event, Request
from fastrlhf.generation.rollout_weights import quantised
from fastrlhf.models.backbone import base_model, context_length
from fastrlhf.models.decoder import CannotDescribe, Decoder
from fastrlhf.models.describe import describe

WEIGHTS = (None, "int8")


def run(
    model: nn.Module,
    requests: list[Request],
    *,
    max_rows: int,
    cache_bytes: int | None = None,
    weights: str | None = None,
) -> Iterator[Event]:
    """The tokens of all requests, as they come.

    Args:
        model: a Hugging Face causal language model, or a PEFT model around one.
        max_rows: the most rows of the batch.
        cache_bytes: see `Engine`.
        weights: "int8" computes with copies of the weights in 8 bits, made now.

    Raises:
        ValueError: a prompt without a token, with tokens that there are not, or too long for the model's context.
        FloatingPointError: a row's logits are NaN.
    """
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}, expected one of {WEIGHTS}")
    if max_rows < 1:
        raise ValueError(f"max_rows is {max_rows}, expected at least 1")
    _check_requests(model, requests)
    with weights_at_hand(base_model(model)) as bring:
        decoder = describe_or_say(model, max(request.positions for request in requests), bring)
        if decoder is None and weights is not None:
            raise ValueError(f"weights is {weights!r}, which the model's own forward cannot compute with")
        if decoder is None:
            yield from run_fallback(base_model(model), requests, max_rows=max_rows)
            return
        if weights == "int8":
            decoder = quantised(decoder)
        yield from Engine(decoder, requests, max_rows=max_rows, cache_bytes=cache_bytes).run()


def describe_or_say(model: nn.Module, positions: int, bring: Callable | None = None) -> Decoder | None:
    """The model's description, or None and one notice that says why there is none."""
    try:
        decoder = describe(model, bring)
        if decoder.longest is not None and positions > decoder.longest:
            raise CannotDescribe(
                f"the angles of its rotary embedding change after {decoder.longest} positions"
            )
        return decoder
    except CannotDescribe as reason:
        _say_once(
            f"{type(base_model(model)).__name__} generates with its own forward, which is slower: {reason}"
        )
        return None


@functools.cache
def _say_once(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=6)


def _check_requests(model: nn.Module, requests: list[Request]) -> None:
    if not requests:
        raise ValueError("there are no prompts, expected at least one")
    rows = base_model(model).get_input_embeddings().weight.shape[0]
    longest = context_length(model)
    for request in requests:
        length, most = len(request.prompt), request.settings.max_new_tokens
        if not length:
            raise ValueError(f"prompt {request.index} is empty, expected at least one token")
        if longest is not None and length + most > longest:
            raise ValueError(
                f"prompt {request.index} has {length} tokens, which with max_new_tokens={most} is more than the "
                f"{longest} of the model's context"
            )
        if min(request.prompt) < 0 or max(request.prompt) >= rows:
            raise ValueError(
                f"prompt {request.index} holds token {min(request.prompt)} or {max(request.prompt)}, expected "
                f"tokens in [0, {rows}) (rows of the embedding)"
            )
