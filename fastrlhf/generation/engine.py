"""A batched generator: one prefill, then a token a step for the rows that have not ended."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers import DynamicCache

from fastrlhf.kernels import sample
from fastrlhf.models.backbone import base_model, position_ids


class Generation(NamedTuple):
    """tokens `[B, R]` (R is the longest response's length; `pad_token_id` after a row's end), logprobs `[B, R]` (of
    the sampled tokens, under the tempered distribution, float32; zero after the end)."""

    tokens: torch.Tensor
    logprobs: torch.Tensor


@torch.no_grad()
def generate(
    model: nn.Module,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    *,
    max_new_tokens: int,
    pad_token_id: int,
    stop_token_ids: Sequence[int] = (),
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    first_row_id: int = 0,
) -> Generation:
    """Sample one response for each prompt.

    Args:
        model: a Hugging Face causal language model, or a PEFT model around one.
        input_ids: `[B, P]`, int64, padded on the left.
        attention_mask: `[B, P]`, bool.
        max_new_tokens: length at which a response ends anyway.
        pad_token_id: what stands after a response's end.
        stop_token_ids: tokens that end a response (and are its last).
        temperature, top_k, top_p, seed: see `fastrlhf.kernels.sample`.
        first_row_id: row i draws the random numbers of row `first_row_id + i`, whatever batch it stands in.

    Returns:
        A `Generation`. The loop ends when every row has; rows that have ended leave the batch.

    Raises:
        ValueError: an empty batch, a prompt without a token, or padding on the right.
        FloatingPointError: a row's logits are NaN; the message names the row and the step.
    """
    _check(input_ids, attention_mask, max_new_tokens)
    model = base_model(model)
    rows, device = input_ids.shape[0], input_ids.device
    tokens = torch.full((rows, max_new_tokens), pad_token_id, device=device)
    logprobs = torch.zeros(rows, max_new_tokens, device=device)
    stops = torch.tensor(list(stop_token_ids), dtype=torch.int64, device=device)

    alive = torch.arange(rows, device=device)
    cache = DynamicCache(config=model.config)
    mask = attention_mask.bool()
    inputs, positions = input_ids.masked_fill(~mask, 0), position_ids(mask)
    length = 0
    for step in range(max_new_tokens):
        logits = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        chosen = sample(
            logits,
            first_row_id + alive,
            seed=seed,
            step=step,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
        if chosen.logprobs.isnan().any():
            row = int(alive[chosen.logprobs.isnan()][0])
            raise FloatingPointError(f"the logits of row {row} are NaN at step {step} of the generation")
        tokens[alive, step], logprobs[alive, step] = chosen.tokens, chosen.logprobs.float()
        length = step + 1
        going = ~torch.isin(chosen.tokens, stops)
        if not going.all():
            keep = going.nonzero().squeeze(1)
            if keep.numel() == 0:
                break
            cache.batch_select_indices(keep)
            alive, mask, positions = alive[keep], mask[keep], positions[keep]
        inputs, positions = chosen.tokens[going][:, None], positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(mask.shape[0], 1)], dim=1)
    return Generation(tokens[:, :length], logprobs[:, :length])


def generate_in_batches(
    model: nn.Module, input_ids: torch.Tensor, attention_mask: torch.Tensor, *, batch_size: int, **options
) -> Generation:
    """As `generate`, `batch_size` rows at a time; a row gets the random numbers that it would get in one batch."""
    first_row_id, pad_token_id = options.pop("first_row_id", 0), options["pad_token_id"]
    parts = []
    for start in range(0, len(input_ids), batch_size):
        rows = slice(start, start + batch_size)
        try:
            part = generate(
                model, input_ids[rows], attention_mask[rows], first_row_id=first_row_id + start, **options
            )
        except FloatingPointError as error:
            raise FloatingPointError(f"{error} (counted from row {start} of the batch)") from None
        parts.append(part)
    width = max(part.tokens.shape[1] for part in parts)
    return Generation(
        torch.cat([widen(part.tokens, width, pad_token_id) for part in parts]),
        torch.cat([widen(part.logprobs, width, 0.0) for part in parts]),
    )


def widen(tensor: torch.Tensor, width: int, value: float) -> torch.Tensor:
    """`[B, width]`: `tensor` with columns of `value` on its right."""
    return torch.nn.functional.pad(tensor, (0, width - tensor.shape[1]), value=value)


def _check(input_ids: torch.Tensor, attention_mask: torch.Tensor, max_new_tokens: int) -> None:
    if input_ids.dim() != 2 or input_ids.numel() == 0:
        raise ValueError(
            f"input_ids has shape {list(input_ids.shape)}, expected [B, P] with at least one token"
        )
    if attention_mask.shape != input_ids.shape:
        raise ValueError(
            f"attention_mask has shape {list(attention_mask.shape)}, expected that of input_ids: "
            f"{list(input_ids.shape)}"
        )
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens is {max_new_tokens}, expected at least 1")
    if not attention_mask[:, -1].all():
        row = int((~attention_mask[:, -1].bool()).nonzero()[0])
        raise ValueError(f"row {row} of input_ids is empty or padded on the right; pad prompts on the left")
