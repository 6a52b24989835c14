// Generalised advantage estimation: one warp a row, 32 positions at a time from the row's end.
//
// A_t = delta_t + c A_{t+1} is a chain of affine maps of the advantage after the 32 positions. A scan over
// the lanes composes the maps; the advantage carried over then goes through each composed map.
#pragma once

#include "moments.cuh"
#include "number.cuh"

namespace fastrlhf {

constexpr int GAE_ROWS_PER_BLOCK = 4;
constexpr int GAE_THREADS = GAE_ROWS_PER_BLOCK * WARP;

inline unsigned gae_blocks(int64_t rows) {
  return (unsigned)((rows + GAE_ROWS_PER_BLOCK - 1) / GAE_ROWS_PER_BLOCK);
}

// x -> add + scale x; a masked position forgets x altogether, even where x is NaN.
struct Affine {
  float add, scale;
  bool forgets;
};

// `first` after `then`, that is x -> first(then(x)).
__device__ __forceinline__ Affine compose(Affine first, Affine then) {
  if (first.forgets) return first;
  return {first.add + first.scale * then.add, first.scale * then.scale, then.forgets};
}

__device__ __forceinline__ float apply(Affine map, float x) {
  return map.forgets ? map.add : map.add + map.scale * x;
}

// Grid: gae_blocks(rows) blocks of GAE_THREADS. row_moments: [rows, 3], for `moments_finish`.
// At least one block a multiprocessor: left to itself ptxas aims at full occupancy and spills 8 bytes on
// sm_100.
template <class T>
__global__ void __launch_bounds__(GAE_THREADS, 1)
    gae_kernel(const T* __restrict__ rewards, const T* __restrict__ values, const bool* __restrict__ mask,
               const bool* __restrict__ moments_mask, T* __restrict__ advantages, T* __restrict__ returns,
               double* __restrict__ row_moments, int64_t rows, int64_t columns, float gamma,
               float gamma_lam) {
  const int64_t row = (int64_t)blockIdx.x * GAE_ROWS_PER_BLOCK + threadIdx.x / WARP;
  if (row >= rows) return;  // whole warps: the shuffles below are among the lanes of one row
  const int lane = threadIdx.x % WARP;
  const int64_t start = row * columns;

  double moments[MOMENTS] = {};
  float next_value = 0, next_advantage = 0;  // of the position after these 32, the same in every lane
  for (int64_t base = (columns - 1) / WARP * WARP; base >= 0; base -= WARP) {
    const int64_t at = start + base + lane;
    const bool inside = base + lane < columns;
    const bool keep = inside && mask[at];
    const float reward = inside ? to_float(rewards[at]) : 0.0f, value = inside ? to_float(values[at]) : 0.0f;

    const float state_value = keep ? value : 0.0f;
    float value_after = __shfl_down_sync(FULL_WARP, state_value, 1);
    if (lane == WARP - 1) value_after = next_value;
    const float delta = reward + gamma * value_after - value;

    Affine map = keep ? Affine{delta, gamma_lam, false} : Affine{0.0f, 0.0f, true};
    for (int distance = 1; distance < WARP; distance *= 2) {
      const Affine then = {__shfl_down_sync(FULL_WARP, map.add, distance),
                           __shfl_down_sync(FULL_WARP, map.scale, distance),
                           (bool)__shfl_down_sync(FULL_WARP, (int)map.forgets, distance)};
      if (lane + distance < WARP) map = compose(map, then);
    }
    const float advantage = apply(map, next_advantage);

    if (inside) {
      advantages[at] = from_float<T>(advantage);
      returns[at] = from_float<T>(keep ? advantage + value : 0.0f);
    }
    if (keep && moments_mask[at]) {
      moments[0] += 1;
      moments[1] += advantage;
      moments[2] += (double)advantage * advantage;
    }
    next_value = __shfl_sync(FULL_WARP, state_value, 0);
    next_advantage = __shfl_sync(FULL_WARP, advantage, 0);
  }
  for (int i = 0; i < MOMENTS; ++i) {
    const double sum = warp_sum(moments[i]);
    if (lane == 0) row_moments[row * MOMENTS + i] = sum;
  }
}

}  // namespace fastrlhf
