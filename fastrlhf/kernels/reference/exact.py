"""Exponential and logarithm that give the same bits on every backend, so that all draw the same tokens.

float32, written out as single additions and multiplications, each rounded, none fused: the same sequence stands in
csrc/exact.h and kernels/triton/exact.py. Both are within a few units in the last place of the truth.
"""

from __future__ import annotations

import torch

LOWEST = -86.0  # below it e^x counts as zero: every intermediate result stays a normal number
EXP_COEFFICIENTS = (1 / 40320, 1 / 5040, 1 / 720, 1 / 120, 1 / 24, 1 / 6, 0.5)
# Moshier's minimax polynomial of log(1 + x) on [√½ - 1, √2 - 1] (Cephes, logf).
LOG_COEFFICIENTS = (
    7.0376836292e-2,
    -1.1514610310e-1,
    1.1676998740e-1,
    -1.2420140846e-1,
    1.4249322787e-1,
    -1.6668057665e-1,
    2.0000714765e-1,
    -2.4999993993e-1,
    3.3333331174e-1,
)
LOG2_E, LN2_HIGH, LN2_LOW = 1.44269504, 0.693359375, -2.12194440e-4  # the first part of ln 2 has nine bits
_TO_INTEGER = 1.5 * 2.0**23  # adding it rounds to an integer, which then stands in the low bits
_HALF_ROOT = 0x3F3504F3  # √½


def exp(x: torch.Tensor) -> torch.Tensor:
    """e^x of x at most zero; zero below -86; NaN of NaN."""
    clamped = x.clamp(min=LOWEST)
    shifted = clamped * LOG2_E + _TO_INTEGER
    rounded = shifted - _TO_INTEGER
    r = (clamped - rounded * LN2_HIGH) - rounded * LN2_LOW
    q = torch.full_like(x, EXP_COEFFICIENTS[0])
    for coefficient in EXP_COEFFICIENTS[1:]:
        q = q * r + coefficient
    n = shifted.view(torch.int32) - torch.full_like(x, _TO_INTEGER).view(torch.int32)
    e = (1.0 + (r + r * r * q)) * (n + 127 << 23).view(torch.float32)
    return torch.where(x < LOWEST, 0.0, e)


def log(x: torch.Tensor) -> torch.Tensor:
    """Natural logarithm of positive normal numbers; its relative error stays small around one."""
    bits = x.view(torch.int32)
    exponent = bits - _HALF_ROOT >> 23
    f = (bits - (exponent << 23)).view(torch.float32) - 1.0
    n = exponent.float()
    square = f * f
    p = torch.full_like(x, LOG_COEFFICIENTS[0])
    for coefficient in LOG_COEFFICIENTS[1:]:
        p = p * f + coefficient
    rest = ((p * f) * square + n * LN2_LOW) - 0.5 * square
    return (f + rest) + n * LN2_HIGH
