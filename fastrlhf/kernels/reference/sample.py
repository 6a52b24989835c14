"""Gumbel-max sampling with the Philox counter-based generator, in plain PyTorch."""

from __future__ import annotations

import torch

from fastrlhf.kernels.reference.linear_logprob import xlogx

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def sample(logits, row_ids, seed, step, temperature, top_k, top_p):
    """See `fastrlhf.kernels.sample`."""
    scaled = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature > 0:
        scaled = scaled / temperature
    log_p = torch.log_softmax(scaled, dim=-1)
    if temperature > 0:
        noise = gumbel(seed, step, row_ids, logits.shape[1]).to(log_p.dtype)
        tokens = (truncate(log_p, top_k, top_p) + noise).argmax(dim=-1)
    else:
        tokens = scaled.argmax(dim=-1)
    return tokens, log_p.gather(1, tokens[:, None]).squeeze(1), -xlogx(log_p).sum(dim=-1)


def truncate(log_p: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """`[B, V]` with -inf for what top-k and top-p leave out (at least the most probable token stays)."""
    if 0 < top_k < log_p.shape[1]:
        kth = log_p.topk(top_k, dim=-1).values[:, -1:]
        log_p = log_p.masked_fill(log_p < kth, -torch.inf)
    if top_p < 1:
        p, order = torch.softmax(log_p, dim=-1).sort(dim=-1, descending=True, stable=True)
        reached_before = p.cumsum(dim=-1) - p >= top_p
        log_p = log_p.masked_fill(
            torch.zeros_like(log_p, dtype=torch.bool).scatter(1, order, reached_before), -torch.inf
        )
    return log_p


def gumbel(seed: int, step: int, row_ids: torch.Tensor, columns: int) -> torch.Tensor:
    """`[B, columns]` standard Gumbel noise, float32: -log(-log u) of uniforms strictly inside (0, 1)."""
    return -torch.log(-torch.log(uniform(seed, step, row_ids, columns)))


def uniform(seed: int, step: int, row_ids: torch.Tensor, columns: int) -> torch.Tensor:
    """`[B, columns]` uniforms, float32. Column v is word v mod 4 of the block with counter (v div 4, step, row).

    The top 23 bits and a half, as float32 holds them exactly: the least is 2^-24 and the largest 1 - 2^-24.
    """
    blocks = torch.arange((columns + 3) // 4, device=row_ids.device)
    shape = (row_ids.shape[0], blocks.shape[0])
    counter = (
        blocks.expand(shape),
        torch.full(shape, step & _MASK, device=row_ids.device),
        (row_ids & _MASK)[:, None].expand(shape),
        (row_ids >> 32 & _MASK)[:, None].expand(shape),
    )
    words = torch.stack(philox(counter, (seed & _MASK, seed >> 32 & _MASK)), dim=-1)
    bits = words.flatten(1)[:, :columns] >> 9
    return (bits.float() + 0.5) * 2.0**-23


def philox(
    counter: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], key: tuple[int, int]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Philox4x32-10: four random 32-bit words (held in int64) for each counter of four 32-bit words."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(word: torch.Tensor, multiplier: int) -> tuple[torch.Tensor, torch.Tensor]:
    """High and low 32 bits of the 64-bit product (int64 wraps, which leaves both halves right once masked)."""
    product = word * multiplier
    return product >> 32 & _MASK, product & _MASK
