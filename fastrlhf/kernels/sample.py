"""Sampling of the next token: contract, registration and public function."""

from __future__ import annotations

from collections.abc import Sequence
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

MAX_VOCABULARY = 2**20  # up to here sums of a row's weights are exact in float64


class Sample(NamedTuple):
    """What `sample` returns."""

    tokens: torch.Tensor
    logprobs: torch.Tensor
    entropy: torch.Tensor


def sample(
    logits: torch.Tensor,
    row_ids: torch.Tensor,
    *,
    seed: int | torch.Tensor,
    step: int | torch.Tensor,
    temperature: float | torch.Tensor = 1.0,
    top_k: int | torch.Tensor = 0,
    top_p: float | torch.Tensor = 1.0,
    min_p: float | torch.Tensor = 0.0,
    repetition_penalty: float | torch.Tensor = 1.0,
    seen: torch.Tensor | None = None,
    banned: torch.Tensor | None = None,
) -> Sample:
    """Draw one token a row by the Gumbel-max trick with a counter-based generator.

    Token `v` of a row draws the same random number whatever batch the row stands in: it depends on `seed`, the row's
    id, `step` and `v` alone (Philox4x32-10; Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011). The
    token is drawn in float32, by arithmetic that is the same bit for bit on every backend (`reference/exact.py`): equal
    float32 logits give equal tokens. The penalty and the bans come first, then the temperature, top-k, top-p of what
    top-k leaves, and min-p; the largest logit always stays.

    Each number may be a tensor instead, `[B]` or a scalar, on the device of `logits`, so that a step that a CUDA graph
    replays takes new ones: int64 for `seed`, `step` and `top_k`, float32 for the others. Its values are not checked
    (the host would wait for them); a temperature, top-k, top-p or min-p out of range counts as the nearest inside.

    Args:
        logits: `[B, V]`, float, V at most 2^20.
        row_ids: `[B]`, int64, at least zero: what a row is known by to the generator.
        seed: 64 bits; step: the token's position in its sequence; both at least zero.
        temperature: divides the logits (multiplies them by its float32 reciprocal); zero takes the largest logit.
        top_k: keep the `top_k` largest logits (and those equal to the last of them); 0 keeps all.
        top_p: keep the fewest tokens whose probabilities reach `top_p`, in (0, 1] (and those equal to the last of
            them). Probabilities count in units of 2^-33 of the largest (Holtzman et al., "The curious case of neural
            text degeneration", 2020).
        min_p: keep the tokens at least `min_p` times as probable as the most probable one, in [0, 1] (Nguyen et al.,
            "Turning up the heat: min-p sampling", 2025).
        repetition_penalty: divides the positive logits of tokens in `seen` and multiplies the others, more than 0
            (Keskar et al., "CTRL", 2019, section 4.1).
        seen: `[B, V]`, bool: the tokens of each row's text so far (`seen.scatter_(1, tokens[:, None], True)` keeps
            it on the device).
        banned: `[V]` or `[B, V]`, bool: tokens that are never drawn.

    Returns:
        tokens, int64 `[B]`; their log-probabilities and the entropy (nats), float32 `[B]` (float64 for float64), under
        the tempered distribution *before* penalty, bans and filters (the one that training evaluates; temperature one
        where it is zero). A row with nothing to draw from (NaN or +inf among the logits, or all banned or -inf) gives
        NaN for both, and token 0.

    Raises:
        ValueError, TypeError: shapes, dtypes, devices or arguments that do not fit.
    """
    check_dims("logits", logits, 2, "[B, V]")
    check_dtype("logits", logits, FLOATS)
    rows, columns = logits.shape
    if not 0 < columns <= MAX_VOCABULARY:
        raise ValueError(
            f"logits has shape {list(logits.shape)}, expected [B, V] with V from 1 to {MAX_VOCABULARY}"
        )
    check_shape("row_ids", row_ids, (rows,), "[B]")
    check_dtype("row_ids", row_ids, (torch.int64,))
    if seen is not None:
        check_shape("seen", seen, (rows, columns), "[B, V]")
        check_dtype("seen", seen, (torch.bool,))
    if banned is not None:
        if banned.dim() != 1:
            check_shape("banned", banned, (rows, columns), "[V] or [B, V]")
        check_shape("banned", banned, (*banned.shape[:-1], columns), "[V] or [B, V]")
        check_dtype("banned", banned, (torch.bool,))
        banned = banned.expand(rows, columns)
    settings = {
        "seed": seed,
        "step": step,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
    }
    tensors = {name: value for name, value in settings.items() if isinstance(value, torch.Tensor)}
    check_same_device(logits=logits, row_ids=row_ids, seen=seen, banned=banned, **tensors)
    for name, tensor in tensors.items():
        check_dtype(name, tensor, (torch.int64 if name in ("seed", "step", "top_k") else torch.float32,))
        if tensor.dim() != 0:
            check_shape(name, tensor, (rows,), "[B]")
    _check_numbers({name: value for name, value in settings.items() if name not in tensors})
    if seen is None and ("repetition_penalty" in tensors or repetition_penalty != 1):
        raise ValueError(f"repetition_penalty is {repetition_penalty}, but seen is None")

    numbers = [
        default if name in tensors else settings[name]
        for name, default in zip(settings, (0, 0, 1.0, 0, 1.0, 0.0, 1.0), strict=True)
    ]
    if numbers[0] >= 2**63:
        numbers[0] -= 2**64  # the same 64 bits, as the int64 that a schema takes
    of_rows = [tensors[name].expand(rows) if name in tensors else None for name in settings]
    return Sample(*_sample(logits, row_ids, *numbers, seen, banned, of_rows))


def _check_numbers(numbers: dict[str, float]) -> None:
    for name, value in numbers.items():
        if name in ("top_p", "min_p"):
            if not (0.0 < value <= 1.0 or (name == "min_p" and value == 0)):
                raise ValueError(
                    f"{name} is {value}, expected a number in {'(' if name == 'top_p' else '['}0, 1]"
                )
        else:
            check_at_least(name, value, 0, strict=name == "repetition_penalty")
    if numbers.get("seed", 0) >= 2**64:
        raise ValueError(f"seed is {numbers['seed']}, expected less than 2**64")


@dispatch.costs("sample")
def _cost(logits, row_ids, *options) -> Cost:
    *_, seen, banned, of_rows = options
    a_row = 8 + 2 * torch.promote_types(logits.dtype, torch.float32).itemsize
    return Cost(nbytes(logits, row_ids, seen, banned, *of_rows), logits.shape[0] * a_row, 10 * logits.numel())


@operation("sample")
def _sample(
    logits: torch.Tensor,
    row_ids: torch.Tensor,
    seed: int,
    step: int,
    temperature: float,
    top_k: int,
    top_p: float,
    min_p: float,
    repetition_penalty: float,
    seen: torch.Tensor | None,
    banned: torch.Tensor | None,
    of_rows: Sequence[torch.Tensor | None],
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`of_rows`: a tensor `[B]` or None for each argument from `seed` to `repetition_penalty`; it goes before the
    number."""
    return dispatch.call(
        "sample",
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
    )


@_sample.register_fake
def _(logits, row_ids, *_):
    rows = logits.shape[0]
    floats = torch.promote_types(logits.dtype, torch.float32)
    return (
        logits.new_empty(rows, dtype=torch.int64),
        logits.new_empty(rows, dtype=floats),
        logits.new_empty(rows, dtype=floats),
    )
