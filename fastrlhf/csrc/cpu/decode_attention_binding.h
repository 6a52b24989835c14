// decode_attention in fastrlhf._cpu.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "decode_attention.h"

namespace fastrlhf {

inline void bind_decode_attention(pybind11::module_& module) {
  // caches: of key and value, the address and three strides; sizes: rows, heads, key heads, width, blocks, block
  // size, max_blocks.
  module.def("decode_attention",
             [](uintptr_t query, const std::array<std::array<int64_t, 4>, 2>& caches, uintptr_t block_table,
                uintptr_t lengths, const std::array<int64_t, 7>& sizes, float scale, float softcap,
                int64_t window, uintptr_t output) {
               const auto cache = [](const std::array<int64_t, 4>& from) {
                 return Cache{(const float*)from[0], from[1], from[2], from[3]};
               };
               const DecodeProblem problem = {(const float*)query,
                                              cache(caches[0]),
                                              cache(caches[1]),
                                              (const int32_t*)block_table,
                                              (const int32_t*)lengths,
                                              sizes[0],
                                              sizes[1],
                                              sizes[2],
                                              sizes[3],
                                              sizes[4],
                                              sizes[5],
                                              sizes[6],
                                              scale,
                                              softcap,
                                              window};
               pybind11::gil_scoped_release release;
               decode_attention(problem, (float*)output);
             });
}

}  // namespace fastrlhf
