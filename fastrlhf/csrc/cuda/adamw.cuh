// AdamW: four parameters a thread, in loads of 16 bytes where the chunks are aligned; bound by memory.
#pragma once

#include "number.cuh"

#include "../adamw_update.h"

namespace fastrlhf {

constexpr int ADAMW_THREADS = 256;
constexpr int ADAMW_PER_THREAD = 4;

inline int64_t adamw_blocks(int64_t size) {
  const int64_t per_block = ADAMW_THREADS * ADAMW_PER_THREAD;
  return (size + per_block - 1) / per_block;
}

template <class T>
struct alignas(ADAMW_PER_THREAD * sizeof(T)) Four {
  T of[ADAMW_PER_THREAD];
};

// Whether four numbers of each array can be loaded at once.
template <class G>
bool adamw_aligned(const AdamWArrays<G>& a) {
  const uintptr_t floats = (uintptr_t)a.parameters | (uintptr_t)a.exp_avg | (uintptr_t)a.exp_avg_sq;
  return floats % sizeof(Four<float>) == 0 && (uintptr_t)a.gradients % sizeof(Four<G>) == 0 &&
         (uintptr_t)a.bfloat16_copy % sizeof(Four<uint16_t>) == 0;
}

// The loops over a tail have as many steps as those over whole loads: a count that the compiler does not know
// would put the numbers into local memory.
template <class T>
__device__ __forceinline__ Four<T> load_four(const T* from, int count, bool whole) {
  if (whole) return *(const Four<T>*)from;
  Four<T> to{};
#pragma unroll
  for (int i = 0; i < ADAMW_PER_THREAD; ++i) {
    if (i < count) to.of[i] = from[i];
  }
  return to;
}

template <class T>
__device__ __forceinline__ void store_four(T* to, const Four<T>& from, int count, bool whole) {
  if (whole) {
    *(Four<T>*)to = from;
    return;
  }
#pragma unroll
  for (int i = 0; i < ADAMW_PER_THREAD; ++i) {
    if (i < count) to[i] = from.of[i];
  }
}

// The `block`-th block of ADAMW_THREADS of a chunk. aligned: `adamw_aligned` of the arrays.
template <class G>
__device__ __forceinline__ void adamw_block(const AdamWArrays<G>& a, int64_t size,
                                            const AdamWNumbers& numbers, bool aligned, int64_t block) {
  const int64_t at = (block * ADAMW_THREADS + threadIdx.x) * ADAMW_PER_THREAD;
  if (at >= size) return;
  const AdamWStep step = adamw_step(a, numbers);
  if (step.skipped) return;
  const int count = size - at < ADAMW_PER_THREAD ? (int)(size - at) : ADAMW_PER_THREAD;
  const bool whole = aligned && count == ADAMW_PER_THREAD;
  const Four<G> gradients = load_four(a.gradients + at, count, whole);
  Four<float> parameters = load_four(a.parameters + at, count, whole);
  Four<float> exp_avg = load_four(a.exp_avg + at, count, whole);
  Four<float> exp_avg_sq = load_four(a.exp_avg_sq + at, count, whole);
  Four<__nv_bfloat16> copy{};
#pragma unroll
  for (int i = 0; i < ADAMW_PER_THREAD; ++i) {
    adamw_update(to_float(gradients.of[i]), parameters.of[i], exp_avg.of[i], exp_avg_sq.of[i], step);
    copy.of[i] = from_float<__nv_bfloat16>(parameters.of[i]);
  }
  store_four(a.parameters + at, parameters, count, whole);
  store_four(a.exp_avg + at, exp_avg, count, whole);
  store_four(a.exp_avg_sq + at, exp_avg_sq, count, whole);
  if (a.bfloat16_copy) store_four((__nv_bfloat16*)a.bfloat16_copy + at, copy, count, whole);
}

// Grid: adamw_blocks(size) blocks of ADAMW_THREADS.
template <class G>
__global__ void __launch_bounds__(ADAMW_THREADS)
    adamw_kernel(AdamWArrays<G> a, int64_t size, AdamWNumbers numbers, bool aligned) {
  adamw_block(a, size, numbers, aligned, (int64_t)blockIdx.x);
}

}  // namespace fastrlhf
