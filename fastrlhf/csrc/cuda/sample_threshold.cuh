// The logit from which on a filter keeps tokens: a radix search over the bits of the row's logits, eleven at a time,
// with the weights of the tokens of each digit added up in shared memory. Sums of integers, the same in any order.
#pragma once

#include "reduce.cuh"
#include "rounded.cuh"

namespace fastrlhf {

constexpr int RADIX_BITS = 11, RADIX = 1 << RADIX_BITS;
constexpr int RADIX_PASSES = 3;                         // 11, 11 and 10 bits
constexpr int WEIGHT_PARTS = 4, WEIGHT_PART_BITS = 11;  // of a weight of up to 2^33 units

// Unsigned integers in the order of the floats, and back; the two zeros are one.
__device__ __forceinline__ uint32_t to_rank(float x) {
  const int32_t bits = to_bits(Rounded{x} + 0.0f);
  return (uint32_t)(bits ^ ((bits >> 31) | INT32_MIN));
}

__device__ __forceinline__ float from_rank(uint32_t rank) {
  const int32_t bits = (int32_t)rank;
  return from_bits(bits ^ (~(bits >> 31) | INT32_MIN)).x;
}

// A 64-bit atomic addition in shared memory is a loop that spins where many lanes meet; 32-bit ones are not.
struct RadixSums {
  unsigned parts[WEIGHT_PARTS][RADIX];

  __device__ __forceinline__ void clear() {
    for (int at = threadIdx.x; at < WEIGHT_PARTS * RADIX; at += blockDim.x) parts[at / RADIX][at % RADIX] = 0;
  }
  __device__ __forceinline__ void add(unsigned digit, uint64_t weight) {
    for (int part = 0; weight != 0; ++part, weight >>= WEIGHT_PART_BITS) {
      const unsigned bits = (unsigned)weight & ((1u << WEIGHT_PART_BITS) - 1);
      if (bits) atomicAdd(&parts[part][digit], bits);
    }
  }
  __device__ __forceinline__ uint64_t of(unsigned digit) const {
    uint64_t sum = 0;
    for (int part = 0; part < WEIGHT_PARTS; ++part)
      sum += (uint64_t)parts[part][digit] << (part * WEIGHT_PART_BITS);
    return sum;
  }
};

// What the search keeps in shared memory.
template <int THREADS>
struct RadixSearch {
  RadixSums sums;
  uint64_t of_warp[THREADS / WARP];
  uint64_t above;
  unsigned digit;
};

// The largest logit such that the tokens from it on weigh at least `target`, or, with `share`, at least that share of
// all. logit(column) is a float, weight(logit) its weight in units; what weighs nothing may be left out. Called by all
// threads; begins with a barrier.
template <int THREADS, class Logit, class Weight>
__device__ __forceinline__ float radix_threshold(RadixSearch<THREADS>& search, int columns, Logit logit,
                                                 Weight weight, double target, bool share) {
  constexpr int WARPS = THREADS / WARP, DIGITS = RADIX / THREADS;  // digits a thread adds up
  static_assert(THREADS <= RADIX);
  const int lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
  uint64_t above = 0;      // what the tokens above the digits found so far weigh
  uint32_t rank_bits = 0;  // the digits found so far
  for (int pass = 0; pass < RADIX_PASSES; ++pass) {
    const int shift = pass < RADIX_PASSES - 1 ? 32 - RADIX_BITS * (pass + 1) : 0;
    const int width = pass < RADIX_PASSES - 1 ? RADIX_BITS : 32 - RADIX_BITS * pass;
    const uint32_t found_bits = pass ? ~0u << (shift + width) : 0;
    __syncthreads();
    search.sums.clear();
    __syncthreads();
    for (int column = threadIdx.x; column < columns; column += THREADS) {
      const float x = logit(column);
      const uint32_t rank = to_rank(x);
      if ((rank & found_bits) == rank_bits) search.sums.add(rank >> shift & ((1u << width) - 1), weight(x));
    }
    __syncthreads();

    // From the largest digit down: this thread's digits, those of the lanes before it, those of the warps before.
    uint64_t mine = 0;
    const unsigned first = RADIX - 1 - threadIdx.x * DIGITS;
    for (int i = 0; i < DIGITS; ++i) mine += search.sums.of(first - i);
    uint64_t until = mine;
    for (int distance = 1; distance < WARP; distance *= 2) {
      const uint64_t before = __shfl_up_sync(FULL_WARP, until, distance);
      if (lane >= distance) until += before;
    }
    if (lane == WARP - 1) search.of_warp[warp] = until;
    __syncthreads();
    uint64_t all = 0;
    for (int other = 0; other < WARPS; ++other) {
      if (other == warp) until += all;
      all += search.of_warp[other];
    }
    if (share && pass == 0) target *= (double)all;
    if (target < 1) target = 1;

    uint64_t before = above + until - mine;
    for (int i = 0; i < DIGITS; ++i) {
      const uint64_t here = before + search.sums.of(first - i);
      if ((double)before < target && (double)here >= target) {
        search.digit = first - i;
        search.above = before;
      }
      before = here;
    }
    __syncthreads();
    above = search.above;
    rank_bits |= search.digit << shift;
  }
  return from_rank(rank_bits);
}

}  // namespace fastrlhf
