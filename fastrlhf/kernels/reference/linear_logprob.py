"""Log-probability and entropy of chosen tokens, one tile of rows at a time."""

from __future__ import annotations

import torch

# 64 rows of a 50,257-word vocabulary are 12.9 MB in float32: a tile stays in a 32 MB cache, and a matrix product of
# 64 rows is already within a few per cent of the speed of one of 1,024.
TILE_ROWS = 64


def linear_logprob(hidden_states, weight, targets, bias, temperature, softcap):
    """See `fastrlhf.kernels.linear_logprob`."""
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    logprobs = torch.empty(hidden_states.shape[0], dtype=dtype, device=hidden_states.device)
    entropy = torch.empty_like(logprobs)
    for rows in tiles(hidden_states.shape[0]):
        log_p = log_softmax(logits(hidden_states[rows], weight, bias, softcap), temperature)
        logprobs[rows] = log_p.gather(1, targets[rows, None]).squeeze(1)
        entropy[rows] = -xlogx(log_p).sum(dim=1)
    return logprobs, entropy


def tiles(rows: int) -> list[slice]:
    """Slices of at most `TILE_ROWS` that cover `rows`."""
    return [slice(start, min(start + TILE_ROWS, rows)) for start in range(0, rows, TILE_ROWS)]


def logits(hidden_states, weight, bias, softcap):
    """`[n, V]`, float32 at least, before the temperature."""
    z = torch.nn.functional.linear(hidden_states, weight, bias)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def log_softmax(z, temperature):
    """`log softmax(z / temperature)` along the last dimension."""
    return torch.log_softmax(z / temperature, dim=-1)


def xlogx(log_p):
    """`p log p`, zero where p is zero (a logit of -inf)."""
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p)
