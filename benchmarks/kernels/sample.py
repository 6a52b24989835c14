"""Sampling the next token of a decoding batch: counter-based Gumbel-max against softmax and multinomial."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "sample"


FILTERS = {
    "plain": {},
    "top_k=50": {"top_k": 50},
    "top_p=0.9": {"top_p": 0.9},
    "top_k=50 top_p=0.9": {"top_k": 50, "top_p": 0.9},
    "min_p=0.05": {"min_p": 0.05},
}


def plain(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """The warpers of `generate()`, then multinomial, with the log-probability and entropy that PPO needs."""
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    kept = log_p
    if top_k:
        kept = kept.masked_fill(kept < kept.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ascending, order = kept.sort()
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        kept = kept.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    if min_p:
        p = kept.softmax(-1)
        kept = kept.masked_fill(p < min_p * p.amax(-1, keepdim=True), -torch.inf)
    tokens = torch.multinomial(kept.softmax(-1), 1)
    return tokens.squeeze(1), log_p.gather(1, tokens).squeeze(1), -(log_p.exp() * log_p).sum(-1)


# SmolLM2's vocabulary. The logits are as flat as a model's before its end: top_p=0.9 keeps thousands of words.
@pytest.mark.parametrize("rows", [16, 1])
@pytest.mark.parametrize("filters", FILTERS)
@torch.inference_mode()
def bench_sample(measure, device, filters, rows):
    torch.manual_seed(0)
    logits = 3 * torch.randn(rows, 49_152, device=device)
    row_ids, options = torch.arange(rows, device=device), FILTERS[filters]
    measure(
        f"[{rows}, 49152] {filters}",
        lambda: kernels.sample(logits, row_ids, seed=0, step=1, temperature=0.7, **options),
        eager=lambda: plain(logits, temperature=0.7, **options),
    )
