"""Generates with a model's own forward and cache, for models that there is no description of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import nn
from transformers import DynamicCache

from fastrlhf.generation.request import Event, Request, not_a_number
from fastrlhf.generation.rows import Rows
from fastrlhf.models.backbone import position_ids


@torch.no_grad()
def run_fallback(model: nn.Module, requests: list[Request], *, max_rows: int) -> Iterator[Event]:
    """The tokens of `requests` as they come, `max_rows` requests one after the other; rows that end leave the batch.

    Raises:
        FloatingPointError: a row's logits are NaN; the message names the row and the step.
    """
    for start in range(0, len(requests), max_rows):
        yield from _run_batch(model, requests[start : start + max_rows])


def _run_batch(model: nn.Module, active: list[Request]) -> Iterator[Event]:
    device = model.get_input_embeddings().weight.device
    inputs, mask = _left_padded(active, device)
    positions, rows, cache = position_ids(mask), None, DynamicCache(config=model.config)
    while active:
        logits = model(
            input_ids=inputs,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        if rows is None:
            rows = Rows(len(active), 1, logits.shape[1], device, active)
            rows.place(0, [(request, []) for request in active])
        rows.draw(logits)
        drawn = [tensor[: len(active)].tolist() for tensor in rows.drawn]
        for row, (request, token, logprob, entropy) in enumerate(zip(active, *drawn, strict=True)):
            if logprob != logprob:
                raise not_a_number(request)
            yield request.push(token, logprob, entropy)
            if len(request.tokens) == request.settings.min_new_tokens:
                rows.allow_stops(row)
        going = [row for row, request in enumerate(active) if request.finish_reason is None]
        if len(going) < len(active):
            active = [active[row] for row in going]
            if not active:
                return
            kept = torch.tensor(going, device=device)
            cache.batch_select_indices(kept)
            mask, positions = mask[kept], positions[kept]
            for target, source in enumerate(going):
                rows.move(source, target)
        inputs, positions = rows.tokens[: len(active), None].clone(), positions[:, -1:] + 1
        mask = torch.cat([mask, mask.new_ones(len(active), 1)], dim=1)


def _left_padded(requests: list[Request], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(request.prompt) for request in requests)
    ids = torch.zeros(len(requests), width, dtype=torch.int64)
    mask = torch.zeros(len(requests), width, dtype=torch.bool)
    for row, request in enumerate(requests):
        ids[row, width - len(request.prompt) :] = torch.tensor(request.prompt)
        mask[row, width - len(request.prompt) :] = True
    return ids.to(device), mask.to(device)
