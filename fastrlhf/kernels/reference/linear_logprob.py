"""Log-probability and entropy of chosen tokens, one tile of rows at a time."""

from __future__ import annotations

import torch

# 64 rows of a 50,257-word vocabulary are 12.9 MB in float32: a tile stays in a 32 MB cache, and a matrix product of
# 64 rows is already within a few per cent of the speed of one of 1,024.
TILE_ROWS = 64


def linear_logprob(hidden_states, weight, targets, bias, temperature, softcap, slopes):
    """See `fastrlhf.kernels.linear_logprob`."""
    rows, device = hidden_states.shape[0], hidden_states.device
    dtype = torch.promote_types(hidden_states.dtype, torch.float32)
    logprobs = torch.empty(rows, dtype=dtype, device=device)
    entropy = torch.empty_like(logprobs)
    logsumexp = torch.empty(rows, dtype=torch.float64, device=device)
    kept = [
        torch.empty(hidden_states.shape if wanted else 0, dtype=dtype, device=device)
        for wanted in (slopes > 0, slopes > 1)
    ]
    top_logprobs = torch.empty_like(logprobs)
    for tile in tiles(rows):
        z = logits(hidden_states[tile], weight, bias, softcap)
        log_p = torch.log_softmax(z / temperature, dim=-1)
        entropy[tile] = -xlogx(log_p).sum(dim=1)
        chosen = targets[tile, None]
        logprobs[tile] = log_p.gather(1, chosen).squeeze(1)
        # From the largest logit, where the difference keeps all the bits.
        largest, at = z.max(dim=1, keepdim=True)
        logsumexp[tile] = ((largest / temperature).double() - log_p.gather(1, at)).squeeze(1)
        top_logprobs[tile] = log_p.gather(1, at).squeeze(1)
        one, none = torch.ones_like(entropy[tile]), torch.zeros_like(entropy[tile])
        for slope, grads in zip(kept[:slopes], ((one, None), (none, one)), strict=False):
            grad_z = logits_gradient(z, log_p, chosen, entropy[tile], *grads, temperature, softcap)
            slope[tile] = grad_z.to(hidden_states.dtype) @ weight
    return logprobs, entropy, logsumexp, *kept, top_logprobs


def tiles(rows: int) -> list[slice]:
    """Slices of at most `TILE_ROWS` that cover `rows`."""
    return [slice(start, min(start + TILE_ROWS, rows)) for start in range(0, rows, TILE_ROWS)]


def logits(hidden_states, weight, bias, softcap):
    """`[n, V]`, float32 at least, before the temperature."""
    z = torch.nn.functional.linear(hidden_states, weight, bias)
    z = z.to(torch.promote_types(z.dtype, torch.float32))
    return z if softcap is None else softcap * torch.tanh(z / softcap)


def logits_gradient(z, log_p, chosen, entropy, grad_logprobs, grad_entropy, temperature, softcap):
    """`[n, V]`: the gradient of the logits, before the softcap, from those of the outputs. With `H` the entropy,

    `d logprob / dz = (onehot - p) / temperature`, `d H / dz = -p (log p + H) / temperature`.
    """
    p = log_p.exp()
    grad_z = -p * grad_logprobs[:, None]
    if grad_entropy is not None:
        grad_z -= (xlogx(log_p) + p * entropy[:, None]) * grad_entropy[:, None]
    grad_z.scatter_add_(1, chosen, grad_logprobs[:, None])
    grad_z /= temperature
    return grad_z if softcap is None else grad_z * (1 - (z / softcap).square())


def xlogx(log_p):
    """`p log p`, zero where p is zero (a logit of -inf)."""
    return torch.where(log_p == -torch.inf, 0.0, log_p.exp() * log_p)
