#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "rope.h"

namespace fastrlhf {

// {from, to, heads, token stride, head stride, both of `to`}.
inline Heads rope_heads(const std::array<int64_t, 7>& given) {
  return {(const float*)given[0], (float*)given[1], given[2], given[3], given[4], given[5], given[6]};
}

inline void bind_rope(pybind11::module_& module) {
  module.def("rope", [](const std::array<int64_t, 7>& query, const std::array<int64_t, 7>& key, uintptr_t cos,
                        int64_t cos_stride, uintptr_t sin, int64_t sin_stride, int64_t rotated,
                        int64_t tokens, int64_t width, bool transposed) {
    pybind11::gil_scoped_release release;
    const Angles angles = {(const float*)cos, (const float*)sin, cos_stride, sin_stride, rotated};
    rope(rope_heads(query), rope_heads(key), angles, tokens, width, transposed);
  });
}

}  // namespace fastrlhf
