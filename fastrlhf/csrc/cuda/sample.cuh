// Sampling of the next token: one block a row, which it reads from the caches after the first pass.
#pragma once

#include "best.cuh"
#include "number.cuh"
#include "sample_threshold.cuh"

#include "../exact.h"
#include "../sample_arguments.h"

namespace fastrlhf {

constexpr int SAMPLE_THREADS = 512;  // 1,024 leave 64 registers a thread, and spill

// A row's logits as they are evaluated, and as they are drawn from.
template <class T>
struct SampledRow {
  const T* logits;
  const bool *seen, *banned;
  float inverse, penalty;

  __device__ __forceinline__ bool restricted() const { return seen || banned; }
  __device__ __forceinline__ float plain(int column) const {
    return (Rounded{to_float(logits[column])} * inverse).x;
  }
  __device__ __forceinline__ float drawn(int column) const {
    if (banned && banned[column]) return -INFINITY;
    float x = to_float(logits[column]);
    if (seen && seen[column]) x = x > 0 ? x / penalty : x * penalty;
    return (Rounded{x} * inverse).x;
  }
};

// log Z and entropy of the plain distribution relative to its largest logit, in thread zero: sums of what is less
// probable than the largest, so that the little that is left beside it does not drown in one.
template <class T>
__device__ __forceinline__ void sample_statistics(const SampledRow<T>& row, int columns, float largest,
                                                  double& log_sum, double& entropy) {
  double sums[3] = {};  // how many equal the largest, and sums of e^x and of x e^x over the others
  int equal = 0;
  float others = 0, weighted = 0;
  for (int column = threadIdx.x; column < columns; column += SAMPLE_THREADS) {
    const float x = row.plain(column) - largest;
    const float e = exact::exp(Rounded{x}).x;
    equal += x == 0;
    others += x == 0 ? 0 : e;
    weighted += e > 0 ? x * e : 0;
  }
  sums[0] = equal;
  sums[1] = others;
  sums[2] = weighted;
  block_sums<3, SAMPLE_THREADS>(sums);
  if (threadIdx.x != 0) return;
  log_sum = log1p((sums[0] - 1) + sums[1]);
  entropy = log_sum - sums[2] / (sums[0] + sums[1]);
  entropy = entropy < 0 ? 0 : entropy;
}

template <class T>
__device__ __forceinline__ float sample_filter(const SampledRow<T>& row, const SampleRow& settings,
                                               int columns, float largest) {
  __shared__ RadixSearch<SAMPLE_THREADS> search;
  const auto logit = [&](int column) { return row.drawn(column); };
  float least = -INFINITY;
  if (settings.top_k) {
    const auto one = [](float) { return (uint64_t)1; };
    least = radix_threshold(search, columns, logit, one, (double)settings.top_k, false);
  }
  if (settings.top_p < 1) {
    const auto weight = [&](float x) {
      return x >= least ? (uint64_t)(exact::weight(Rounded{x} - largest).x * exact::UNITS) : 0;
    };
    least = radix_threshold(search, columns, logit, weight, (double)settings.top_p, true);
  }
  if (settings.min_p > 0) {
    const float by_ratio = (exact::log(Rounded{settings.min_p}) + largest).x;
    least = by_ratio > least ? by_ratio : least;
  }
  return least;
}

// Grid: one block of SAMPLE_THREADS a row. At least one block a multiprocessor: left to itself ptxas aims at two and
// spills 108 bytes on sm_80.
template <class T>
__global__ void __launch_bounds__(SAMPLE_THREADS, 1) sample_kernel(SampleArguments<T> a) {
  __shared__ bool is_distribution;
  const int64_t at = blockIdx.x;
  const int columns = (int)a.columns;
  const SampleRow settings = sample_row(a, at);
  const SampledRow<T> row = {a.logits + at * a.logits_stride, a.seen ? a.seen + at * a.seen_stride : nullptr,
                             a.banned ? a.banned + at * a.banned_stride : nullptr, settings.inverse,
                             settings.penalty};

  Best plain, drawn;
  for (int column = threadIdx.x; column < columns; column += SAMPLE_THREADS) {
    plain.offer(row.plain(column), column);
    if (row.restricted()) drawn.offer(row.drawn(column), column);
  }
  plain = block_best<SAMPLE_THREADS>(plain);
  drawn = row.restricted() ? block_best<SAMPLE_THREADS>(drawn) : plain;

  double log_sum = 0, entropy = 0;  // thread zero's
  sample_statistics(row, columns, plain.key, log_sum, entropy);
  if (threadIdx.x == 0) is_distribution = isfinite(drawn.key) && !isnan(log_sum);
  __syncthreads();
  if (!is_distribution) {
    if (threadIdx.x == 0) {
      a.tokens[at] = 0;
      a.logprobs[at] = a.entropy[at] = NAN;
    }
    return;
  }

  int token = drawn.column;
  if (!settings.greedy) {
    const float least = sample_filter(row, settings, columns, drawn.key);
    Best best;
    for (int first = 4 * threadIdx.x; first < columns; first += 4 * SAMPLE_THREADS) {
      const PhiloxWords words = philox((uint32_t)first / 4, settings.random);
      for (int i = 0; i < 4 && first + i < columns; ++i) {
        const float x = row.drawn(first + i);
        const Rounded noise = exact::gumbel(exact::uniform<Rounded>((int32_t)(words.word[i] >> 9)));
        if (x >= least) best.offer(((Rounded{x} - drawn.key) + noise).x, first + i);
      }
    }
    token = block_best<SAMPLE_THREADS>(best).column;
  }
  if (threadIdx.x == 0) {
    a.tokens[at] = token;
    a.logprobs[at] = (float)((double)(row.plain(token) - plain.key) - log_sum);
    a.entropy[at] = (float)entropy;
  }
}

}  // namespace fastrlhf
