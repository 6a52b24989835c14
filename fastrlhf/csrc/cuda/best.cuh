// The largest of a block's keys, and the first column that has it.
#pragma once

#include "reduce.cuh"

namespace fastrlhf {

struct Best {
  float key = -INFINITY;
  int column = 0;

  // A NaN is never the best.
  __device__ __forceinline__ void offer(float other, int other_column) {
    if (other > key || (other == key && other_column < column)) {
      key = other;
      column = other_column;
    }
  }
};

// Given to every thread. May be called again: it begins with a barrier.
template <int THREADS>
__device__ __forceinline__ Best block_best(Best mine) {
  constexpr int WARPS = THREADS / WARP;
  __shared__ float keys[WARPS];
  __shared__ int columns[WARPS];
  for (unsigned distance = WARP / 2; distance > 0; distance /= 2) {
    const float key = __shfl_xor_sync(FULL_WARP, mine.key, distance);
    mine.offer(key, __shfl_xor_sync(FULL_WARP, mine.column, distance));
  }
  __syncthreads();
  if (threadIdx.x % WARP == 0) {
    keys[threadIdx.x / WARP] = mine.key;
    columns[threadIdx.x / WARP] = mine.column;
  }
  __syncthreads();
  for (int warp = 0; warp < WARPS; ++warp) mine.offer(keys[warp], columns[warp]);
  return mine;
}

}  // namespace fastrlhf
