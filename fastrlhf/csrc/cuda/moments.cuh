// Count, sum and sum of squares, from those of each row (of each group) to those of all.
#pragma once

#include "reduce.cuh"

namespace fastrlhf {

constexpr int MOMENTS = 3, MOMENTS_THREADS = 256;

// Grid: one block of THREADS. parts_of: [parts, MOMENTS]. A template, so that every source that launches it may hold
// it.
template <int THREADS>
__global__ void __launch_bounds__(THREADS)
    moments_finish(const double* __restrict__ parts_of, double* __restrict__ moments, int64_t parts) {
  double sums[MOMENTS];
  sum_parts<MOMENTS, THREADS>(parts_of, parts, sums);
  if (threadIdx.x == 0) {
    for (int i = 0; i < MOMENTS; ++i) moments[i] = sums[i];
  }
}

}  // namespace fastrlhf
