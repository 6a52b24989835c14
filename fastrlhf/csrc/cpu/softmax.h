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

}  // namespace fastrlhf
