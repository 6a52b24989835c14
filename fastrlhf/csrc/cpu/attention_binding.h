// attention and attention_backward in fastrlhf._cpu.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "attention.h"

namespace fastrlhf {

// (address, stride of the first dimension, stride of the second).
typedef std::array<int64_t, 3> HeadsAddress;

inline HeadsIn heads_at(const HeadsAddress& from) { return {(const float*)from[0], from[1], from[2]}; }

// heads: query, key, value; sizes: sequences, heads, key heads, width, window.
inline AttentionProblem attention_problem(const std::array<HeadsAddress, 3>& heads, uintptr_t cu_seqlens,
                                          uintptr_t skip, const std::array<int64_t, 5>& sizes, float scale,
                                          float softcap) {
  return {heads_at(heads[0]),
          heads_at(heads[1]),
          heads_at(heads[2]),
          (const int32_t*)cu_seqlens,
          (const int32_t*)skip,
          sizes[0],
          sizes[1],
          sizes[2],
          sizes[3],
          scale,
          softcap,
          sizes[4]};
}

inline void bind_attention(pybind11::module_& module) {
  module.def("attention", [](const std::array<HeadsAddress, 3>& heads, uintptr_t cu_seqlens, uintptr_t skip,
                             const std::array<int64_t, 5>& sizes, float scale, float softcap,
                             uintptr_t output, uintptr_t lse) {
    const AttentionProblem problem = attention_problem(heads, cu_seqlens, skip, sizes, scale, softcap);
    pybind11::gil_scoped_release release;
    attention(problem, (float*)output, (float*)lse);
  });
  module.def("attention_backward", [](const std::array<HeadsAddress, 3>& heads, uintptr_t cu_seqlens,
                                      uintptr_t skip, const std::array<int64_t, 5>& sizes, float scale,
                                      float softcap, const HeadsAddress& grad_output, uintptr_t output,
                                      uintptr_t lse, const std::array<uintptr_t, 3>& gradients) {
    const AttentionProblem problem = attention_problem(heads, cu_seqlens, skip, sizes, scale, softcap);
    pybind11::gil_scoped_release release;
    attention_backward(problem, heads_at(grad_output), (const float*)output, (const float*)lse,
                       (float*)gradients[0], (float*)gradients[1], (float*)gradients[2]);
  });
}

}  // namespace fastrlhf
