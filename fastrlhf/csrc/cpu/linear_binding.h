// The binding of linear.cpp.
#pragma once

#include <pybind11/pybind11.h>

#include "linear.h"

namespace fastrlhf {

inline void bind_linear(pybind11::module_& module) {
  module.def("thin_linear",
             [](uintptr_t x, uintptr_t weight, uintptr_t codes, uintptr_t scales, uintptr_t bias, uintptr_t y,
                int64_t batch, int64_t out, int64_t in, bool transposed) {
               pybind11::gil_scoped_release release;
               thin_linear({(const float*)x, (const float*)weight, (const int8_t*)codes, (const float*)scales,
                            (const float*)bias, (float*)y, batch, out, in, transposed});
             });
  module.def("limit_linear_vectors", &limit_linear_vectors);
  module.def("linear_vectors", &linear_vectors);
}

}  // namespace fastrlhf
