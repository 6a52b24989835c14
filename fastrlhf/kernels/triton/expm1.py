"""expm1, which Triton has only in a library of one vendor's."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def expm1_and_rest(x):
    """exp(x) - 1 and exp(x) - 1 - x, float32, each to a few units in its last place.

    Up to |x| = 1 the second is the series x²/2! + x³/3! + ..., of which eleven powers leave out 2e-9; beyond, the
    differences lose at most two bits.
    """
    series = 1 / 39916800 * x + 1 / 3628800
    series = series * x + 1 / 362880
    series = series * x + 1 / 40320
    series = series * x + 1 / 5040
    series = series * x + 1 / 720
    series = series * x + 1 / 120
    series = series * x + 1 / 24
    series = series * x + 1 / 6
    series = series * x + 1 / 2
    rest = series * x * x
    far = tl.exp(x) - 1
    near = tl.abs(x) < 1
    return tl.where(near, x + rest, far), tl.where(near, rest, far - x)
