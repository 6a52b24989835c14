// Sums in an order that depends on the launch alone: no atomics, so the same input gives the same bits.
#pragma once

namespace fastrlhf {

constexpr unsigned WARP = 32, FULL_WARP = 0xffffffffu;

// The sum over a warp, in lane zero.
__device__ __forceinline__ double warp_sum(double x) {
  for (unsigned distance = WARP / 2; distance > 0; distance /= 2)
    x += __shfl_down_sync(FULL_WARP, x, distance);
  return x;
}

// Adds up COUNT values over a block of THREADS and leaves the sums in thread zero's `values`.
// Once a kernel: a second call would need a barrier before it.
template <int COUNT, int THREADS>
__device__ __forceinline__ void block_sums(double (&values)[COUNT]) {
  constexpr int WARPS = THREADS / WARP;
  __shared__ double of_warp[WARPS][COUNT];
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  for (int i = 0; i < COUNT; ++i) {
    const double sum = warp_sum(values[i]);
    if (lane == 0) of_warp[warp][i] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int i = 0; i < COUNT; ++i) {
      values[i] = 0;
      for (int w = 0; w < WARPS; ++w) values[i] += of_warp[w][i];
    }
  }
}

// The second pass, run by one block: adds up `parts` rows of COUNT partial sums into thread zero's `sums`.
template <int COUNT, int THREADS>
__device__ __forceinline__ void sum_parts(const double* parts_of, int64_t parts, double (&sums)[COUNT]) {
  for (int i = 0; i < COUNT; ++i) sums[i] = 0;
  for (int64_t part = threadIdx.x; part < parts; part += THREADS) {
    for (int i = 0; i < COUNT; ++i) sums[i] += parts_of[part * COUNT + i];
  }
  block_sums<COUNT, THREADS>(sums);
}

}  // namespace fastrlhf
