// The arguments of `sample`, for every processor, and what a row makes of them.
#pragma once

#include "philox.h"

namespace fastrlhf {

// A setting of all rows, or of each (a stride of zero gives every row the same).
template <class V>
struct PerRow {
  const V* of_row;  // null: `all`
  int64_t stride;
  V all;

  FASTRLHF_INLINE V at(int64_t row) const { return of_row ? of_row[row * stride] : all; }
};

template <class T>
struct SampleArguments {
  const T* logits;                                    // [rows, columns]
  const int64_t* row_ids;                             // [rows]
  const bool *seen, *banned;                          // [rows, columns], each may be null
  int64_t logits_stride, seen_stride, banned_stride;  // from row to row
  int64_t rows, columns;
  PerRow<int64_t> seed, step;
  PerRow<float> temperature;
  PerRow<int64_t> top_k;
  PerRow<float> top_p, min_p, penalty;
  int64_t* tokens;
  float *logprobs, *entropy;
};

// One row's settings. Filters that are off, or out of range, are marked so.
struct SampleRow {
  bool greedy;
  float inverse, penalty;  // one over the temperature; the repetition penalty
  int64_t top_k;           // zero: off
  float top_p, min_p;      // one and zero: off
  PhiloxStream random;
};

template <class T>
FASTRLHF_INLINE SampleRow sample_row(const SampleArguments<T>& a, int64_t row) {
  const float temperature = a.temperature.at(row), top_p = a.top_p.at(row), min_p = a.min_p.at(row);
  const int64_t top_k = a.top_k.at(row);
  const uint64_t seed = (uint64_t)a.seed.at(row), id = (uint64_t)a.row_ids[row];
  SampleRow out;
  out.greedy = !(temperature > 0);
  out.inverse = out.greedy ? 1.0f : 1.0f / temperature;
  out.penalty = a.penalty.at(row);
  out.top_k = top_k > 0 && top_k < a.columns ? top_k : 0;
  out.top_p = top_p < 1 ? top_p : 1.0f;
  out.min_p = min_p > 0 ? (min_p < 1e-30f ? 1e-30f : min_p < 1 ? min_p : 1.0f) : 0.0f;
  out.random = {{(uint32_t)seed, (uint32_t)(seed >> 32)},
                {(uint32_t)a.step.at(row), (uint32_t)id, (uint32_t)(id >> 32)}};
  return out;
}

}  // namespace fastrlhf
