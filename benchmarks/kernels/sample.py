"""Sampling the next token of a decoding batch: counter-based Gumbel-max against softmax and multinomial."""

from __future__ import annotations

import pytest
import torch

from fastrlhf import kernels

OPERATION = "sample"


def plain(logits, temperature=1.0, top_k=0, top_p=1.0):
    """The warpers of `generate()`, then multinomial, with the log-probability and entropy that PPO needs."""
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    kept = log_p
    if top_k:
        kept = kept.masked_fill(kept < kept.topk(top_k).values[:, -1:], -torch.inf)
    if top_p < 1:
        ascending, order = kept.sort()
        dropped = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        kept = kept.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
    tokens = torch.multinomial(kept.softmax(-1), 1)
    return tokens.squeeze(1), log_p.gather(1, tokens).squeeze(1), -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("rows", [1, 16])
@pytest.mark.parametrize("options", [{}, {"top_k": 50}, {"top_p": 0.9}], ids=str)
def bench_sample(measure, device, rows, options):
    torch.manual_seed(0)
    logits = torch.randn(rows, 49_152, device=device)
    row_ids = torch.arange(rows, device=device)
    measure(
        lambda: plain(logits, temperature=0.7, **options),
        lambda: kernels.sample(logits, row_ids, seed=0, step=1, temperature=0.7, **options),
    )
