// The bindings of `linear_logprob` and its backward.
#pragma once

#include <pybind11/stl.h>

#include <array>

#include "linear_logprob.h"
#include "gemm.h"

namespace fastrlhf {

// hidden_states, weight, bias, targets; rows, words, width; temperature, softcap.
typedef std::array<uintptr_t, 4> LinearLogprobInputs;
typedef std::array<int64_t, 3> LinearLogprobSizes;

inline LinearLogprobHead linear_logprob_head(const LinearLogprobInputs& inputs,
                                             const LinearLogprobSizes& sizes, float temperature,
                                             float softcap) {
  return {(const float*)inputs[0],
          (const float*)inputs[1],
          (const float*)inputs[2],
          (const int64_t*)inputs[3],
          sizes[0],
          sizes[1],
          sizes[2],
          temperature,
          softcap};
}

inline void bind_linear_logprob(pybind11::module_& module) {
  module.def("linear_logprob_scratch", [](const LinearLogprobSizes& sizes, int slopes, int threads) {
    return linear_logprob_scratch(linear_logprob_head({}, sizes, 1, 0), slopes, threads);
  });
  module.def("linear_logprob_backward_scratch", [](const LinearLogprobSizes& sizes, bool held) {
    return linear_logprob_backward_scratch(linear_logprob_head({}, sizes, 1, 0), held);
  });
  module.def("held_logits", [](const LinearLogprobSizes& sizes) {
    return held_logits(linear_logprob_head({}, sizes, 1, 0));
  });
  module.def("linear_logprob",
             [](const LinearLogprobInputs& inputs, const LinearLogprobSizes& sizes, float temperature,
                float softcap, const std::array<uintptr_t, 7>& out, uintptr_t scratch, int threads) {
               pybind11::gil_scoped_release release;
               linear_logprob(linear_logprob_head(inputs, sizes, temperature, softcap),
                              {(float*)out[0], (float*)out[1], (double*)out[2], (float*)out[3],
                               (float*)out[4], (float*)out[5], (float*)out[6]},
                              (float*)scratch, threads);
             });
  module.def("linear_logprob_backward",
             [](const LinearLogprobInputs& inputs, const LinearLogprobSizes& sizes, float temperature,
                float softcap, const std::array<uintptr_t, 8>& g, bool add, uintptr_t scratch, int threads) {
               pybind11::gil_scoped_release release;
               linear_logprob_backward(
                   linear_logprob_head(inputs, sizes, temperature, softcap),
                   {(const float*)g[0], (const float*)g[1], (const float*)g[2], (const double*)g[3],
                    (float*)g[4], (float*)g[5], (float*)g[6], (float*)g[7], add},
                   (float*)scratch, threads);
             });
  module.def("allow_avx512", &allow_avx512);
}

}  // namespace fastrlhf
