// Advantages of responses over the others of their group: one warp a group, which reads its scores three times.
//
// All in float64, of which there is next to nothing: a few numbers a response.
#pragma once

#include "moments.cuh"
#include "number.cuh"

#include "../group_advantages_divisor.h"

namespace fastrlhf {

constexpr int GROUPS_PER_BLOCK = 4;
constexpr int GROUP_THREADS = GROUPS_PER_BLOCK * WARP;

inline unsigned group_blocks(int64_t groups) {
  return (unsigned)((groups + GROUPS_PER_BLOCK - 1) / GROUPS_PER_BLOCK);
}

// The sum over a warp, in every lane.
__device__ __forceinline__ double warp_total(double x) { return __shfl_sync(FULL_WARP, warp_sum(x), 0); }

// Grid: group_blocks(groups) blocks of GROUP_THREADS. The rows of group g are order[starts[g]] and so on up to
// starts[g + 1], or group_size rows in order where the two are null. mask may be null. group_moments, for
// `moments_finish`: [groups, MOMENTS].
// At least one block a multiprocessor: left to itself ptxas aims at full occupancy and spills 8 bytes on sm_100.
template <class T>
__global__ void __launch_bounds__(GROUP_THREADS, 1)
    group_advantages_kernel(const T* __restrict__ scores, const bool* __restrict__ mask,
                            const int64_t* __restrict__ order, const int64_t* __restrict__ starts,
                            T* __restrict__ advantages, double* __restrict__ group_moments, int64_t groups,
                            int64_t group_size, int estimator, double epsilon) {
  const int64_t group = (int64_t)blockIdx.x * GROUPS_PER_BLOCK + threadIdx.x / WARP;
  if (group >= groups) return;  // whole warps: the shuffles below are among the lanes of one group
  const int lane = threadIdx.x % WARP;
  const int64_t begin = starts ? starts[group] : group * group_size;
  const int64_t end = starts ? starts[group + 1] : begin + group_size;

  double count = 0, mean = 0, rest = 0, squares = 0;
  for (int64_t at = begin + lane; at < end; at += WARP) {
    const int64_t row = order ? order[at] : at;
    if (mask && !mask[row]) continue;
    count += 1;
    mean += to_float(scores[row]);
  }
  count = warp_total(count);
  mean = warp_total(mean) / count;

  for (int64_t at = begin + lane; at < end; at += WARP) {
    const int64_t row = order ? order[at] : at;
    if (mask && !mask[row]) continue;
    const double deviation = to_float(scores[row]) - mean;
    rest += deviation;
    squares += deviation * deviation;
  }
  rest = warp_total(rest) / count;
  const double divisor = group_divisor(estimator, count, rest, warp_total(squares), epsilon);

  double moments[MOMENTS] = {};
  for (int64_t at = begin + lane; at < end; at += WARP) {
    const int64_t row = order ? order[at] : at;
    const bool keep = !mask || mask[row];
    const double advantage = keep ? (to_float(scores[row]) - mean - rest) / divisor : 0;
    advantages[row] = from_float<T>((float)advantage);
    moments[0] += keep;
    moments[1] += advantage;
    moments[2] += advantage * advantage;
  }
  for (int i = 0; i < MOMENTS; ++i) {
    const double sum = warp_sum(moments[i]);
    if (lane == 0) group_moments[group * MOMENTS + i] = sum;
  }
}

}  // namespace fastrlhf
