// From the tuples that the launchers of `sample` hand over to the kernels' arguments, for both modules.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "sample_arguments.h"

namespace fastrlhf {

// Mirrors `SampleCall` in fastrlhf/kernels/sample_arguments.py. Settings in the order of the operation: seed, step,
// temperature, top_k, top_p, min_p, repetition_penalty.
struct SampleCall {
  std::array<uintptr_t, 7>
      addresses;                 // logits, row_ids, seen, banned, tokens, logprobs, entropy; zero for None
  std::array<int64_t, 5> sizes;  // rows, columns, strides of logits, seen and banned from row to row
  std::array<int64_t, 3> whole;  // seed, step, top_k
  std::array<double, 4> real;    // temperature, top_p, min_p, repetition_penalty
  std::array<uintptr_t, 7> of_rows;  // addresses of the settings of rows; zero for None
  std::array<int64_t, 7> strides;
};

template <class T>
SampleArguments<T> sample_arguments(const SampleCall& call) {
  const auto& a = call.addresses;
  const auto& n = call.sizes;
  const auto whole = [&](int at, int64_t all) {
    return PerRow<int64_t>{(const int64_t*)call.of_rows[at], call.strides[at], all};
  };
  const auto real = [&](int at, double all) {
    return PerRow<float>{(const float*)call.of_rows[at], call.strides[at], (float)all};
  };
  return {(const T*)a[0],
          (const int64_t*)a[1],
          (const bool*)a[2],
          (const bool*)a[3],
          n[2],
          n[3],
          n[4],
          n[0],
          n[1],
          whole(0, call.whole[0]),
          whole(1, call.whole[1]),
          real(2, call.real[0]),
          whole(3, call.whole[2]),
          real(4, call.real[1]),
          real(5, call.real[2]),
          real(6, call.real[3]),
          (int64_t*)a[4],
          (float*)a[5],
          (float*)a[6]};
}

}  // namespace fastrlhf
