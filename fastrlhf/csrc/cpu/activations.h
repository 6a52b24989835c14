// The activations of gated units and their derivatives, for vectors of floats of any width.
#pragma once

#include "glu.h"
#include "vector_math.h"

namespace fastrlhf {

// e^x for x of at most zero, within 2 ulp; zero below -87.3, where e^x has not all its digits. Half the work of
// `exponential`: a shorter series (a fit of (e^r - 1 - r) / r², off by 3e-9 of e^r) and one power of two.
template <class V>
FASTRLHF_INLINE V exponential_below_zero(V x) {
  typedef IntsOf<V> I;
  const V magic = V{} + 12582912.0f;  // see `reduce` in simd.h
  const V shifted = x * 1.44269504f + magic;
  const V rounded = shifted - magic;
  const V r = (x - rounded * 0.693359375f) + rounded * 2.12194440e-4f;
  const V r2 = r * r;
  const V high = 1.38144672e-3f * r2 + (8.36878048e-3f * r + 4.16683942e-2f);
  const V q = high * r2 + (1.66665201e-1f * r + 4.99999934e-1f);
  const V power = (V)(((I)shifted << 23) + 0x3f800000);
  return x < -87.3f ? V{} : (1.0f + (r + r2 * q)) * power;
}

template <class V>
FASTRLHF_INLINE V magnitude(V x) {
  return (V)((IntsOf<V>)x & 0x7fffffff);
}

// 1 / (1 + e^-x) and its derivative, within 4 ulp whatever x: 1 - value, when value is nearly one, has no
// digits.
template <class V>
struct Sigmoid {
  V value, slope;
};

template <class V>
FASTRLHF_INLINE Sigmoid<V> sigmoid_at(V x) {
  const V e = exponential_below_zero(-magnitude(x)), above = 1.0f / (1.0f + e);
  return {x < 0.0f ? e * above : above, e * above * above};
}

// The normal distribution function within 1e-7 (relatively within 6e-7 above -4), and its density. (A fit of its
// logarithm, without the division, gains 5 % in the forward and loses 25 % in the backward, which has the density.)
template <class V>
struct Normal {
  V distribution, density;
};

template <class V>
FASTRLHF_INLINE Normal<V> normal_at(V x) {
  const V t = magnitude(x), square = x * x;
  const V density = exponential_below_zero(-0.5f * square) * 0.398942280f;
  // Below one a fit of (distribution - 1/2) / x in x², off by 7e-10 relatively.
  V near = square * -7.65420858e-6f + 1.13486373e-4f;
  near = near * square - 1.18632994e-3f;
  near = near * square + 9.97332341e-3f;
  near = near * square - 6.64903599e-2f;
  near = 0.5f + x * (near * square + 3.98942280e-1f);
  // Beyond it one of Mills' ratio in 1 / (1 + 0.28 t), off by 7e-8 relatively.
  const V z = 1.0f / (1.0f + 0.28f * t);
  V tail = z * -0.148253593f + 0.327334058f;
  tail = tail * z - 6.97832593e-3f;
  tail = tail * z + 0.274717340f;
  tail = tail * z + 0.244823283f;
  tail = tail * z + 0.281553594f;
  tail = density * (z * (tail * z + 0.279924146f));
  const V far = x < 0.0f ? tail : 1.0f - tail;
  return {t < 1.0f ? near : far, density};
}

template <class V>
struct Activated {
  V value, slope;
};

template <Activation ACTIVATION, class V>
FASTRLHF_INLINE Activated<V> activate(V x) {
  if constexpr (ACTIVATION == Activation::SILU) {
    const Sigmoid<V> s = sigmoid_at(x);
    return {x * s.value, s.value + x * s.slope};
  } else if constexpr (ACTIVATION == Activation::GELU) {
    const Normal<V> normal = normal_at(x);
    return {x * normal.distribution, normal.distribution + x * normal.density};
  } else {
    // (1 + tanh(u)) / 2 is the sigmoid of 2u = 2 sqrt(2 / pi) (x + 0.044715 x³).
    const V square = x * x;
    const Sigmoid<V> s = sigmoid_at(x * (1.59576912f + 0.0713548163f * square));
    // Where the slope is zero its factor may have overflowed.
    const V rest = s.slope == 0.0f ? V{} : x * s.slope * (1.59576912f + 0.214064449f * square);
    return {x * s.value, s.value + rest};
  }
}

}  // namespace fastrlhf
