// Exponential and logarithm that give the same bits everywhere, so that every backend draws the same tokens: the
// sequence of single roundings of fastrlhf/kernels/reference/exact.py, which the reference takes step by step.
//
// F is a number whose operators round each once: `Rounded` on a GPU, a vector of floats in a translation unit that
// fuses no multiplications with additions. `to_bits(F)`, `from_bits(I)` and `to_floats(I)` come with it.
#pragma once

#include "inline.h"

namespace fastrlhf {
namespace exact {

constexpr float LOWEST = -86.0f;  // below it e^x counts as zero
constexpr float LOG2_E = 1.44269504f, LN2_HIGH = 0.693359375f, LN2_LOW = -2.12194440e-4f;
constexpr float TO_INTEGER = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer, in the low bits
constexpr int32_t TO_INTEGER_BITS = 0x4b400000, HALF_ROOT_BITS = 0x3f3504f3;
constexpr float ROUNDS_TO_UNIT = 1.0f / 1024;  // adding it rounds what is smaller to a multiple of 2^-33
constexpr float UNITS = 8589934592.0f;         // 2^33

// e^x of x at most zero; zero below LOWEST; NaN of NaN.
template <class F>
FASTRLHF_INLINE F exp(F x) {
  const F zero{}, low = zero + LOWEST;
  const F clamped = x < low ? low : x;
  const F shifted = clamped * LOG2_E + TO_INTEGER;
  const F rounded = shifted - TO_INTEGER;
  const F r = (clamped - rounded * LN2_HIGH) - rounded * LN2_LOW;
  F q = r * (float)(1.0 / 40320) + (float)(1.0 / 5040);
  q = q * r + (float)(1.0 / 720);
  q = q * r + (float)(1.0 / 120);
  q = q * r + (float)(1.0 / 24);
  q = q * r + (float)(1.0 / 6);
  q = q * r + 0.5f;
  const F power = from_bits((to_bits(shifted) - TO_INTEGER_BITS + 127) << 23);
  const F e = ((r + r * r * q) + 1.0f) * power;
  return x < low ? zero : e;
}

// Natural logarithm of positive normal numbers.
template <class F>
FASTRLHF_INLINE F log(F x) {
  const auto bits = to_bits(x);
  const auto exponent = (bits - HALF_ROOT_BITS) >> 23;
  const F f = from_bits(bits - (exponent << 23)) - 1.0f;
  const F n = to_floats(exponent), square = f * f;
  F p = f * 7.0376836292e-2f + -1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f + -1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f + -1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f + -2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const F rest = ((p * f) * square + n * LN2_LOW) - square * 0.5f;
  return (f + rest) + n * LN2_HIGH;
}

// The weight of a token for top-p, a multiple of 2^-33: sums of such weights are the same in any order.
template <class F>
FASTRLHF_INLINE F weight(F below_largest) {
  const F e = exp(below_largest), least = F{} + ROUNDS_TO_UNIT;
  return e < least ? (e + ROUNDS_TO_UNIT) - ROUNDS_TO_UNIT : e;
}

// The uniform of a random word: its top 23 bits and a half.
template <class F, class I>
FASTRLHF_INLINE F uniform(I top_bits) {
  return (to_floats(top_bits) + 0.5f) * (1.0f / 8388608);
}

// Standard Gumbel noise of a uniform.
template <class F>
FASTRLHF_INLINE F gumbel(F uniform) {
  const F zero{};
  return zero - log(zero - log(uniform));
}

}  // namespace exact
}  // namespace fastrlhf
