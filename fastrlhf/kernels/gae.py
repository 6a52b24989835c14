"""Generalised advantage estimation: contract, registration and public function."""

from __future__ import annotations

from typing import NamedTuple

import torch

from fastrlhf.device.observe import Cost, nbytes
from fastrlhf.kernels import dispatch
from fastrlhf.kernels.autocast import float32_inputs
from fastrlhf.kernels.checks import FLOATS, check_dims, check_dtype, check_same_device, check_shape
from fastrlhf.kernels.registration import operation


class GAE(NamedTuple):
    """What `gae` returns."""

    advantages: torch.Tensor
    returns: torch.Tensor
    moments: torch.Tensor


def gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    moments_mask: torch.Tensor | None = None,
) -> GAE:
    """Advantages and returns of ragged rows by one reverse scan.

    Source: Schulman et al., "High-dimensional continuous control using generalized advantage estimation" (2016), eq.
    16: `delta_t = r_t + gamma V_{t+1} - V_t`, `A_t = delta_t + gamma lam A_{t+1}`, returns `A_t + V_t`.
    The state after a row's last kept position is worth zero. A position that the mask leaves out ends the episode
    before it, and gets advantage and return zero.

    Args:
        rewards: `[B, T]`, float.
        values: `[B, T]`, the same dtype: the value of the state in which token t was chosen.
        mask: `[B, T]`, bool: the positions of each row that count.
        gamma: discount per token, in [0, 1].
        lam: decay of the estimator, in [0, 1].
        moments_mask: `[B, T]`, bool: the positions whose advantages enter `moments`; `mask` if None.

    Returns:
        advantages and returns, `[B, T]` in the dtype of `rewards`, and moments, float64 `[3]`: count, sum and sum of
        squares of the advantages, which `whiten` takes (not whitened here: micro-batches and ranks add them up first).

    Raises:
        ValueError, TypeError: shapes, dtypes or devices that do not fit, gamma or lam outside [0, 1].

    Memory: the three outputs, and nothing that grows with B x T besides; the reference also holds a few
    float64 temporaries of that size for the moments (a column at a time they took 20 ms for [64, 512] on
    one core, not 12.5).
    """
    rewards, values = float32_inputs(rewards, values)
    check_dims("rewards", rewards, 2, "[B, T]")
    check_dtype("rewards", rewards, FLOATS)
    check_shape("values", values, tuple(rewards.shape), "[B, T]")
    check_dtype("values", values, (rewards.dtype,))
    moments_mask = mask if moments_mask is None else moments_mask
    for name, tensor in (("mask", mask), ("moments_mask", moments_mask)):
        check_shape(name, tensor, tuple(rewards.shape), "[B, T]")
        check_dtype(name, tensor, (torch.bool,))
    check_same_device(rewards=rewards, values=values, mask=mask, moments_mask=moments_mask)
    for name, value in (("gamma", gamma), ("lam", lam)):
        if not 0.0 <= value <= 1.0:
            raise ValueError(f"{name} is {value}, expected a number in [0, 1]")
    return GAE(*_gae(rewards, values, mask, moments_mask, float(gamma), float(lam)))


@dispatch.costs("gae")
def _cost(rewards, values, mask, moments_mask, gamma, lam) -> Cost:
    read = nbytes(rewards, values, mask, moments_mask)
    return Cost(read, 2 * nbytes(rewards) + 3 * 8, 10 * rewards.numel())


@operation("gae")
def _gae(
    rewards: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    moments_mask: torch.Tensor,
    gamma: float,
    lam: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    return dispatch.call("gae", rewards, values, mask, moments_mask, gamma, lam)


@_gae.register_fake
def _(rewards, values, mask, moments_mask, gamma, lam):
    shape = tuple(rewards.shape)
    return rewards.new_empty(shape), rewards.new_empty(shape), rewards.new_empty(3, dtype=torch.float64)
