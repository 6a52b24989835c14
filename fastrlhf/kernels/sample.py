"""Sampling of the next token: contract, registration and public function."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.checks import (
    FLOATS,
    check_at_least,
    check_dims,
    check_dtype,
    check_same_device,
    check_shape,
)
from fastrlhf.kernels.registration import operation


class Sample(NamedTuple):
    """What `sample` returns."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropy: torch.Tensor


def sample(
    logits: torch.Tensor,
    row_ids: torch.Tensor,
    *,
    seed: int,
    step: int,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Sample:
    """Draw one token a row by the Gumbel-max trick with a counter-based generator.

    Token `v` of a row draws the same random number whatever batch the row stands in: it depends on `seed`, the row's
    id, `step` and `v` alone (Philox4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).

    Args:
        logits: `[B, V]`, float.
        row_ids: `[B]`, int64, at least zero: what a row is known by to the generator.
        seed: 64 bits; step: the token's position in its sequence; both at least zero.
        temperature: divides the logits; zero takes the largest logit.
        top_k: keep the `top_k` largest logits (and those equal to the last of them); 0 keeps all.
        top_p: keep the fewest tokens whose probabilities reach `top_p`, in (0, 1].

    Returns:
        tokens, int64 `[B]`; their log-probabilities and the entropy (nats), float32 `[B]`, under the tempered
        distribution *before* top-k and top-p (the one that training evaluates; temperature one where it is zero).

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or arguments that do not fit.
    """
    check_dims("logits", logits, 2, "[B, V]")
    check_dtype("logits", logits, FLOATS)
    check_shape("row_ids", row_ids, (logits.shape[0],), "[B]")
    check_dtype("row_ids", row_ids, (torch.int64,))
    check_same_device(logits=logits, row_ids=row_ids)
    if logits.shape[1] == 0:
        raise ValueError("logits has shape [B, 0], expected at least one token to choose from")
    for name, value in (("seed", seed), ("step", step), ("temperature", temperature), ("top_k", top_k)):
        check_at_least(name, value, 0)
    if not 0.0 < top_p <= 1.0:
        raise ValueError(f"top_p is {top_p}, expected a number in (0, 1]")
    if seed >= 2**64:
        raise ValueError(f"seed is {seed}, expected less than 2**64")
    seed = seed if seed < 2**63 else seed - 2**64  # the same 64 bits, as the int64 that a schema takes
    return Sample(*_sample(logits, row_ids, seed, step, float(temperature), top_k, float(top_p)))


@dispatch.costs("sample")
def _cost(logits, row_ids, seed, step, temperature, top_k, top_p) -> Cost:
    a_row = 8 + 2 * torch.promote_types(logits.dtype, torch.float32).itemsize
    return Cost(nbytes(logits, row_ids), logits.shape[0] * a_row, 10 * logits.numel())


@operation("sample")
def _sample(
    logits: torch.Tensor,
    row_ids: torch.Tensor,
    seed: int,
    step: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return dispatch.call("sample", logits, row_ids, seed, step, temperature, top_k, top_p)


@_sample.register_fake
def _(logits, row_ids, seed, step, temperature, top_k, top_p):
    rows = logits.shape[0]
    floats = torch.promote_types(logits.dtype, torch.float32)
    return (
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=floats),
        logits.new_empty(rows, dtype=floats),
    )
