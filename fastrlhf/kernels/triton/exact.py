"""Exponential and logarithm that give the same bits as `fastrlhf/kernels/reference/exact.py`, step by step.

A kernel that calls them is launched with `enable_fp_fusion=False`: a fused multiply-add rounds once where these round
twice.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOWEST = tl.constexpr(-86.0)
LOG2_E, LN2_HIGH, LN2_LOW = tl.constexpr(1.44269504), tl.constexpr(0.693359375), tl.constexpr(-2.12194440e-4)
TO_INTEGER, TO_INTEGER_BITS = tl.constexpr(12582912.0), tl.constexpr(0x4B400000)
HALF_ROOT_BITS = tl.constexpr(0x3F3504F3)
ROUNDS_TO_UNIT, UNITS = tl.constexpr(2.0**-10), tl.constexpr(2.0**33)


@triton.jit
def exp(x):
    """e^x of float32 x at most zero; zero below -86; NaN of NaN."""
    low = x < LOWEST
    clamped = tl.where(low, LOWEST, x)
    shifted = clamped * LOG2_E + TO_INTEGER
    rounded = shifted - TO_INTEGER
    r = (clamped - rounded * LN2_HIGH) - rounded * LN2_LOW
    q = r * (1 / 40320) + (1 / 5040)
    q = q * r + (1 / 720)
    q = q * r + (1 / 120)
    q = q * r + (1 / 24)
    q = q * r + (1 / 6)
    q = q * r + 0.5
    n = shifted.to(tl.int32, bitcast=True) - TO_INTEGER_BITS
    power = ((n + 127) << 23).to(tl.float32, bitcast=True)
    return tl.where(low, 0.0, ((r + r * r * q) + 1.0) * power)


@triton.jit
def log(x):
    """Natural logarithm of positive normal float32 numbers."""
    bits = x.to(tl.int32, bitcast=True)
    exponent = (bits - HALF_ROOT_BITS) >> 23
    f = (bits - (exponent << 23)).to(tl.float32, bitcast=True) - 1.0
    n = exponent.to(tl.float32)
    square = f * f
    p = f * 7.0376836292e-2 + -1.1514610310e-1
    p = p * f + 1.1676998740e-1
    p = p * f + -1.2420140846e-1
    p = p * f + 1.4249322787e-1
    p = p * f + -1.6668057665e-1
    p = p * f + 2.0000714765e-1
    p = p * f + -2.4999993993e-1
    p = p * f + 3.3333331174e-1
    rest = ((p * f) * square + n * LN2_LOW) - square * 0.5
    return (f + rest) + n * LN2_HIGH


@triton.jit
def weight(below_largest):
    """A token's weight for top-p in units of 2^-33 of the largest's, int64."""
    e = exp(below_largest)
    rounded = tl.where(e < ROUNDS_TO_UNIT, (e + ROUNDS_TO_UNIT) - ROUNDS_TO_UNIT, e)
    return (rounded * UNITS).to(tl.int64)


@triton.jit
def gumbel(words):
    """Standard Gumbel noise of random 32-bit words: of the uniform that their top 23 bits and a half make."""
    uniform = ((words >> 9).to(tl.int32).to(tl.float32) + 0.5) * (1 / 8388608)
    return 0.0 - log(0.0 - log(uniform))
