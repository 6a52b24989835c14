"""Generation for padded batches of prompts, as trainers have them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fastrlhf.device.observe import host_waits
from fastrlhf.generation.request import Request
from fastrlhf.generation.run import run
from fastrlhf.generation.settings import Settings


class Generation(NamedTuple):
    """tokens `[B, R]` (R is the longest response's length; `pad_token_id` after a row's end), logprobs and entropy
    `[B, R]` (of the sampled tokens, under the tempered distribution, float32; zero after the end)."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropy: torch.Tensor


def generate(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    max_new_tokens: int,
    pad_token_id: int,
    stop_token_ids: Sequence[int] = (),
    first_row_id: int = 0,
    batch_size: int | None = None,
    cache_bytes: int | None = None,
    weights: str | None = None,
    **settings: Any,
) -> Generation:
    """Sample one response for each prompt.

    Args:
        model: a Hugging Face causal language model, or a PEFT model around one.
        input_ids: `[B, P]`, int64, padded on the left.
        attention_mask: `[B, P]`, bool.
        max_new_tokens: length at which a response ends anyway.
        pad_token_id: what stands after a response's end.
        stop_token_ids: tokens that end a response (and are its last).
        first_row_id: row i draws the random numbers of row `first_row_id + i`, whatever batch it stands in.
        batch_size: the most rows that are generated at a time; all where None.
        cache_bytes, weights: see `fastrlhf.generate`.
        settings: temperature, top_k, top_p, seed and others, see `Settings`.

    Returns:
        A `Generation`. A row that ends leaves the batch, and one that waits takes its place.

    Raises:
        ValueError: an empty batch, a prompt without a token, padding on the right, or settings that cannot be meant.
        FloatingPointError: a row's logits are NaN; the message names the row, the step and the layer.
    """
    _check(input_ids, attention_mask)
    if settings.get("stop_strings"):
        raise ValueError("stop_strings need a tokenizer to read the responses with: use fastrlhf.generate")
    of_all = Settings(max_new_tokens, stop_token_ids=tuple(stop_token_ids), **settings)
    with host_waits("the prompts, which the host packs"):
        ids, mask = input_ids.tolist(), attention_mask.bool().tolist()
    requests = [
        Request(
            row, tuple(token for token, real in zip(*pair, strict=True) if real), first_row_id + row, of_all
        )
        for row, pair in enumerate(zip(ids, mask, strict=True))
    ]
    max_rows = len(requests) if batch_size is None else batch_size
    for _ in run(model, requests, max_rows=max_rows, cache_bytes=cache_bytes, weights=weights):
        pass
    return _padded(requests, pad_token_id, input_ids.device)


def _padded(requests: list[Request], pad_token_id: int, device: torch.device) -> Generation:
    width = max(len(request.tokens) for request in requests)
    tokens = torch.full((len(requests), width), pad_token_id)
    logprobs, entropy = torch.zeros(2, len(requests), width)
    for row, request in enumerate(requests):
        length = len(request.tokens)
        for tensor, of_row in (
            (tokens, request.tokens),
            (logprobs, request.logprobs),
            (entropy, request.entropy),
        ):
            tensor[row, :length] = torch.tensor(of_row, dtype=tensor.dtype)
    return Generation(*(tensor.to(device) for tensor in (tokens, logprobs, entropy)))


def widen(tensor: torch.Tensor, width: int, value: float) -> torch.Tensor:
    """`[B, width]`: `tensor` with columns of `value` on its right."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)


def _check(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(
            f"input_ids has shape {list(input_ids.shape)}, expected [B, P] with at least one token"
        )
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)}, expected that of input_ids: "
            f"{list(input_ids.shape)}"
        )
    with host_waits("whether the prompts are padded on the left"):
        if not attention_mask[:, -1].all():
            row = int((~attention_mask[:, -1].bool()).nonzero()[0])
            raise ValueError(
                f"row {row} of input_ids is empty or padded on the right; pad prompts on the left"
            )
