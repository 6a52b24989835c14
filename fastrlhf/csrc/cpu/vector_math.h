// Exponentials and hyperbolic tangents of vectors of floats of any width (see simd.h for those of eight).
#pragma once

#include "simd.h"

namespace fastrlhf {

template <class V>
using IntsOf = decltype(V{} < V{});

template <class V>
FASTRLHF_INLINE V larger(V a, V b) {
  return a > b ? a : b;
}

// e^x = 2^n (1 + rest), for x in [-87.3, 88.7]; see `reduce` in simd.h.
template <class V>
struct PowerAndRest {
  V power, rest;
};

template <class V>
FASTRLHF_INLINE PowerAndRest<V> power_and_rest(V x) {
  typedef IntsOf<V> I;
  const V magic = V{} + 12582912.0f;
  const V shifted = x * 1.44269504f + magic;
  const V rounded = shifted - magic;
  const V r = (x - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
  V q = r * (1.0f / 40320) + 1.0f / 5040;
  q = q * r + 1.0f / 720;
  q = q * r + 1.0f / 120;
  q = q * r + 1.0f / 24;
  q = q * r + 1.0f / 6;
  q = q * r + 0.5f;
  const I n = (I)shifted - (I)magic;
  return {(V)((n + 127) << 23), r + r * r * q};
}

// e^x of x <= 88 within 1 ulp, zero below -87.3 (where floats are subnormal); NaN stays NaN.
template <class V>
FASTRLHF_INLINE V exponential_flushed(V x) {
  const IntsOf<V> tiny = x < -87.3f;
  const PowerAndRest<V> e = power_and_rest(tiny ? V{} - 87.3f : x);
  return tiny ? V{} : e.power + e.power * e.rest;
}

// tanh x = -m / (m + 2) with m = e^(-2|x|) - 1, within a few ulps down to the smallest x; NaN stays NaN.
template <class V>
FASTRLHF_INLINE V hyperbolic_tangent(V x) {
  typedef IntsOf<V> I;
  const I sign = (I)x & (I{} + (int32_t)0x80000000);
  V twice = (V)((I)x | (I{} + (int32_t)0x80000000)) * 2.0f;
  twice = twice < -40.0f ? V{} - 40.0f : twice;
  const PowerAndRest<V> e = power_and_rest(twice);
  const V m = e.power * e.rest + (e.power - 1.0f);
  return (V)((I)(-m / (m + 2.0f)) ^ sign);
}

}  // namespace fastrlhf
