// What attention's kernels ask of eight scores at a time.
#pragma once

#include "simd.h"

namespace fastrlhf {

// e^x within 1 ulp for x up to 88, zero below -87.3, where numbers end to be normal.
FASTRLHF_INLINE f8 softmax_exponential(f8 x) {
  const Reduced e = reduce(x);
  return x < -87.3f ? f8{} : (1.0f + (e.r + e.rest)) * power_of_two(e.n);
}

// Through e^2x - 1, which keeps the digits of a small x.
FASTRLHF_INLINE f8 hyperbolic_tangent(f8 x) {
  const f8 e = expm1_and_rest(clamp_keeping_nan(2.0f * x, -40.0f, 40.0f)).expm1;
  return e / (e + 2.0f);
}

FASTRLHF_INLINE float sum_of_lanes(f8 x) {
  return ((x[0] + x[4]) + (x[2] + x[6])) + ((x[1] + x[5]) + (x[3] + x[7]));
}

// `sum_of_lanes` of four vectors, in the same order, for the price of one and a half.
FASTRLHF_INLINE f4 sums_of_lanes(const f8 (&x)[4]) {
#if defined(__has_builtin)
#if __has_builtin(__builtin_shufflevector)
  f4 halves[4];
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i)
    halves[i] =
        __builtin_shufflevector(x[i], x[i], 0, 1, 2, 3) + __builtin_shufflevector(x[i], x[i], 4, 5, 6, 7);
  const f4 first = __builtin_shufflevector(halves[0], halves[1], 0, 4, 1, 5) +
                   __builtin_shufflevector(halves[0], halves[1], 2, 6, 3, 7);
  const f4 second = __builtin_shufflevector(halves[2], halves[3], 0, 4, 1, 5) +
                    __builtin_shufflevector(halves[2], halves[3], 2, 6, 3, 7);
  return __builtin_shufflevector(first, second, 0, 1, 4, 5) +
         __builtin_shufflevector(first, second, 2, 3, 6, 7);
#endif
#endif
  return f4{sum_of_lanes(x[0]), sum_of_lanes(x[1]), sum_of_lanes(x[2]), sum_of_lanes(x[3])};
}

}  // namespace fastrlhf
