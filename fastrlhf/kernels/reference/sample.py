"""Gumbel-max sampling with the Philox counter-based generator, in plain PyTorch.

What decides on the token is computed in float32 by operations that every backend repeats bit for bit (`exact`), and
where sums decide (top-p) they are sums of whole multiples of one unit, which no order of summation changes.
"""

from __future__ import annotations

import torch

from fastrlhf.kernels.reference import exact
from fastrlhf.kernels.reference.linear_logprob import xlogx

_MASK = 0xFFFFFFFF
_ROUNDS = 10
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
# Adding 2^-10 to a smaller float32 rounds it to a multiple of 2^-33, which larger ones are anyway.
_ROUNDS_TO_UNIT = 2.0**-10
_LEAST_MIN_P = 1e-30


def sample(
    logits,
    row_ids,
    seed,
    step,
    temperature,
    top_k,
    top_p,
    min_p,
    repetition_penalty,
    seen,
    banned,
    of_rows,
):
    """See `fastrlhf.kernels.sample`. `of_rows` has a tensor `[B]` or None for each argument from `seed` to
    `repetition_penalty`; the tensor goes before the number."""
    floats = torch.promote_types(logits.dtype, torch.float32)
    numbers = (seed, step, temperature, top_k, top_p, min_p, repetition_penalty)
    dtypes = (torch.int64, torch.int64, floats, torch.int64, torch.float32, torch.float32, floats)
    seed, step, temperature, top_k, top_p, min_p, penalty = (
        torch.full(row_ids.shape, number, dtype=dtype, device=logits.device)
        if tensor is None
        else tensor.to(dtype)
        for number, tensor, dtype in zip(numbers, of_rows, dtypes, strict=True)
    )
    greedy = ~(temperature > 0)
    inverse = torch.where(greedy, 1.0, 1.0 / temperature)[:, None]
    logits = logits.to(floats)
    log_p = torch.log_softmax(logits * inverse, dim=-1)
    entropy = -xlogx(log_p).sum(dim=-1)

    drawn = (_restrict(logits, seen, penalty[:, None], banned) * inverse).float()
    largest = drawn.amax(dim=-1, keepdim=True)
    kept = drawn >= threshold(drawn, largest, top_k, top_p, min_p)[:, None]
    keys = torch.where(kept, (drawn - largest) + gumbel(seed, step, row_ids, logits.shape[1]), -torch.inf)
    tokens = torch.where(greedy[:, None], drawn, keys).argmax(dim=-1)

    is_distribution = largest.squeeze(1).isfinite() & ~entropy.isnan()
    tokens = torch.where(is_distribution, tokens, 0)
    logprobs = log_p.gather(1, tokens[:, None]).squeeze(1)
    return (
        tokens,
        torch.where(is_distribution, logprobs, torch.nan),
        torch.where(is_distribution, entropy, torch.nan),
    )


def _restrict(logits, seen, penalty, banned):
    """The logits with the repetition penalty (Keskar et al., 2019) on what a row has seen, -inf for what is banned."""
    if seen is not None:
        logits = torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
    return logits if banned is None else logits.masked_fill(banned, -torch.inf)


def threshold(drawn, largest, top_k, top_p, min_p):
    """`[B]`: the logit from which on top-k, then top-p of what it leaves, and min-p keep tokens."""
    ordered = drawn.sort(dim=-1, descending=True).values
    columns = drawn.shape[1]
    last = (top_k.clamp(1, columns) - 1)[:, None]
    at = torch.where(((top_k > 0) & (top_k < columns))[:, None], ordered.gather(1, last), -torch.inf)

    weights = exact.exp(ordered - largest)
    weights = torch.where(weights < _ROUNDS_TO_UNIT, (weights + _ROUNDS_TO_UNIT) - _ROUNDS_TO_UNIT, weights)
    summed = torch.where(ordered >= at, weights.double(), 0.0).cumsum(dim=-1)
    reaches = summed >= top_p.double()[:, None] * summed[:, -1:]
    nucleus = ordered.gather(1, reaches.int().argmax(dim=-1, keepdim=True))
    at = torch.where((top_p < 1)[:, None] & (nucleus > at), nucleus, at)

    least = largest + exact.log(min_p.clamp(_LEAST_MIN_P, 1.0))[:, None]
    return torch.where((min_p > 0)[:, None] & (least > at), least, at).squeeze(1)


def gumbel(seed, step, row_ids: torch.Tensor, columns: int) -> torch.Tensor:
    """`[B, columns]` standard Gumbel noise, float32: -log(-log u) of uniforms strictly inside (0, 1)."""
    return -exact.log(-exact.log(uniform(seed, step, row_ids, columns)))


def uniform(seed, step, row_ids: torch.Tensor, columns: int) -> torch.Tensor:
    """`[B, columns]` uniforms, float32. Column v is word v mod 4 of the block with counter (v div 4, step, row).

    The top 23 bits and a half, as float32 holds them exactly: the least is 2^-24 and the largest 1 - 2^-24.
    seed, step: int64 `[B]`.
    """
    blocks = torch.arange((columns + 3) // 4, device=row_ids.device)
    shape = (row_ids.shape[0], blocks.shape[0])
    counter = (
        blocks.expand(shape),
        (step & _MASK)[:, None].expand(shape),
        (row_ids & _MASK)[:, None].expand(shape),
        (row_ids >> 32 & _MASK)[:, None].expand(shape),
    )
    words = torch.stack(philox(counter, ((seed & _MASK)[:, None], (seed >> 32 & _MASK)[:, None])), dim=-1)
    bits = words.flatten(1)[:, :columns] >> 9
    return (bits.float() + 0.5) * 2.0**-23


def philox(counter, key):
    """Philox4x32-10: four random 32-bit words (held in int64) for each counter of four and key of two such words."""
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
